"""From a pretrained encoder to the module that an adaptation trains."""

from __future__ import annotations

from dataclasses import dataclass

from datamodules.datamodule import CrystalDataModule
from foundation.checkpoint import Checkpoint, build_module, make_card, transfer
from foundation.strategies.base import AdaptationStrategy
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.scaling import fit_scalers
from foundation.training.spec import ModelSpec


@dataclass(frozen=True)
class Adaptation:
    """What is adapted, and how.

    Attributes:
        spec: Architecture: the encoder and one new head.
        optimization: How weights are changed.
        strategy: Which parts of the encoder train.
        pretrained: Where the encoder's weights come from; None for fresh ones.
    """

    spec: ModelSpec
    optimization: Optimization
    strategy: AdaptationStrategy
    pretrained: Checkpoint | None

    def module(self, data: CrystalDataModule) -> tuple[MultiTaskModule, list[str]]:
        """Build the module that trains.

        Args:
            data: The data, its property chosen; the head's scale comes from its training labels.

        Returns:
            The module, and what in it was kept, is new, was dropped and is frozen, one line each.
        """
        (name,) = self.spec.heads
        rates = self.strategy.rates(list(self.spec.build_encoder().stages()))
        module = build_module(self.spec, self.optimization, rates=rates)
        source = None
        if self.pretrained is not None and self.strategy.starts_from_pretrained:
            lines = [*transfer(module.encoder, self.pretrained), f"new: a head for {name}"]
            source = {"path": str(self.pretrained.path), "data": self.pretrained.card["data"]}
        else:
            lines = ["new: the whole encoder", f"new: a head for {name}"]
        frozen = [stage for stage, rate in rates.items() if rate == 0]
        lines.append(f"frozen: {', '.join(frozen) or 'nothing'}")
        fit_scalers(module, data)
        module.card = make_card(self.spec, module, data, source)
        return module, lines
