"""What competes: a source, a strategy, a learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation.adaptation import Adaptation
from foundation.checkpoint import Checkpoint
from foundation.inference import Ensemble, Values, evaluate
from foundation.strategies.base import AdaptationStrategy
from foundation.strategies.by_name import strategy_named
from foundation.training.denoising import AT_REST, Displacements
from foundation.training.optimization import Optimization
from foundation.training.scaling import is_number
from foundation.training.spec import HeadSpec
from foundation.training.trainer import fit_quietly

SCRATCH = "from_scratch"


@dataclass(frozen=True)
class AutoSettings:
    """What ``--strategy auto`` tries.

    Attributes:
        candidates: Strategy -> learning rates to try it with, from every source; the first ones are tried first.
        folds: How many folds the labels are cut into, by formula.
        epochs: Epochs of a full run; more where these would be few steps.
        min_steps: Steps that a full run takes at least.
        final_share: What of the budget is kept for the final fit, at most.
    """

    candidates: dict[str, list[float]] = field(default_factory=dict)
    folds: int = 5
    epochs: int = 60
    min_steps: int = 350
    final_share: float = 0.4


@dataclass(frozen=True)
class Candidate:
    """One way to adapt.

    Attributes:
        source: Name of the checkpoint; "" where none is used.
        strategy: Name of a file in configs/strategies.
        learning_rate: Peak rate.
    """

    source: str
    strategy: str
    learning_rate: float

    def __str__(self) -> str:
        start = f" from {self.source}" if self.source else ""
        return f"{self.strategy}{start}, learning rate {self.learning_rate:g}"


@dataclass(frozen=True)
class Setting:
    """What all candidates share.

    Attributes:
        head: The new head.
        encoder: Arguments of a fresh encoder where there is no source.
        optimization: How weights are changed, but for the rate.
        sources: Name -> checkpoint.
        trainer: Arguments of ``lightning.Trainer``.
        displacements: How atoms are displaced while training.
    """

    head: HeadSpec
    encoder: dict[str, Any]
    optimization: Optimization
    sources: Mapping[str, Checkpoint]
    trainer: Mapping[str, Any]
    displacements: Displacements = AT_REST

    def candidates(self, settings: AutoSettings) -> list[Candidate]:
        """All of them, the most promising first; one that needs no source stands there once.

        Raises:
            InputError: If there is none.
        """
        made = []
        for strategy, rates in settings.candidates.items():
            needs_source = strategy_named(strategy).starts_from_pretrained
            for source in self.sources if needs_source else [""]:
                made += [Candidate(source, strategy, rate) for rate in rates]
        if not made:
            raise InputError(
                "--strategy auto: there is nothing to try; name strategies and rates in auto.candidates, or give "
                "--pretrained"
            )
        return made

    def adaptation(self, candidate: Candidate) -> Adaptation:
        """The adaptation that a candidate stands for."""
        optimization = replace(self.optimization, learning_rate=candidate.learning_rate)
        return replace(self, optimization=optimization).by(strategy_named(candidate.strategy), candidate.source)

    def by(self, strategy: AdaptationStrategy, source: str = "") -> Adaptation:
        """An adaptation by this strategy, from the source of this name, or from the first or only one.

        Raises:
            InputError: If the strategy needs what the checkpoint does not have, or does not fit its encoder.
        """
        checkpoint = self.sources.get(source) or next(iter(self.sources.values()), None)
        return Adaptation.of(self.head, self.encoder, self.optimization, strategy, checkpoint, self.displacements)

    def predict(self, candidate: Candidate, data: CrystalDataModule, epochs: int, seed: int) -> Values:
        """Train a candidate on one split of the labels.

        Args:
            candidate: The candidate.
            data: The data; its training crystals train, its test crystals are predicted.
            epochs: How long.
            seed: Seed of weights and batches.

        Returns:
            [K] predictions of the test crystals in physical units; of what is not one number per crystal their errors,
            as ``crystal_errors`` has them.
        """
        adaptation = self.adaptation(candidate)
        module, _ = adaptation.module(data, seed)
        fit_quietly(module, data, {**self.trainer, "max_epochs": epochs}, adaptation.strategy)
        name = self.head.property.name
        ensemble = Ensemble([module])
        if not is_number(self.head.property):
            return evaluate(ensemble, data, "test").errors[name][:, 2]
        values: Values = ensemble.predict_graphs(data.graphs, data.split.test)[name][:, 0]
        return values
