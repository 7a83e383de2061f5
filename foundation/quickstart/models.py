"""The models of the quickstart: one pretrained jointly, then several adapted by every strategy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import lightning
import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from datamodules.datamodule import CrystalDataModule
from foundation.adaptation import Adaptation
from foundation.checkpoint import Checkpoint, build_module, load_checkpoint, make_card
from foundation.inference import Ensemble, evaluate
from foundation.quickstart.prepare import HELD_BACK, PLENTIFUL, Prepared
from foundation.strategies.by_name import strategy_config, strategy_named
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.run import RunSettings, train
from foundation.training.scaling import fit_scalers
from foundation.training.spec import HeadSpec, ModelSpec

Values = npt.NDArray[np.float64]

HEAD = "heads.ScalarHead"


@dataclass(frozen=True)
class Training:
    """How long and how fast a model trains.

    Attributes:
        epochs: Epochs.
        learning_rate: Peak rate.
        batch_size: Crystals per step.
        validate_every: Epochs between validations; divides ``epochs``.
    """

    epochs: int
    learning_rate: float
    batch_size: int
    validate_every: int = 5

    def trainer(self) -> dict[str, Any]:
        """Arguments of ``lightning.Trainer``; small batches of small cells are fastest on the CPU."""
        return {
            "max_epochs": self.epochs,
            "check_val_every_n_epoch": self.validate_every,
            "gradient_clip_val": 1.0,
            "accelerator": "cpu",
            "devices": 1,
        }


# Strategies by the name of their YAML file, each with the schedule that did best, or as well as the best, of those
# tried within the adaptation labels alone, whole alloy systems left out at a time.
STRATEGIES = {
    "linear_probe": Training(60, 5e-3, 16, 20),
    "last_blocks": Training(60, 5e-3, 16, 20),
    "layer_decay": Training(60, 2e-3, 16, 20),
    "from_scratch": Training(100, 1e-3, 16, 20),
}


@dataclass(frozen=True)
class Settings:
    """What the quickstart does.

    Attributes:
        labels: Labels of the held-back property to learn from; the last tenth of them validates.
        test: Crystals to judge on.
        seeds: Models per strategy.
        encoder: Arguments of the encoder.
        pretraining: How the joint pretraining runs.
        strategies: Name of a file in configs/strategies -> how it trains.
    """

    labels: int = 50
    test: int = 100
    seeds: int = 3
    encoder: Mapping[str, Any] = field(
        default_factory=lambda: {"irreps": "32x0e+16x1o+8x2e", "num_blocks": 3, "readout_channels": 64}
    )
    pretraining: Training = Training(40, 5e-3, 32)
    strategies: Mapping[str, Training] = field(default_factory=lambda: dict(STRATEGIES))


def pretrain(
    prepared: Prepared, settings: Settings, run: RunSettings, say: Callable[[str], None]
) -> tuple[Checkpoint, dict[str, Any]]:
    """Pretrain jointly on the plentiful properties.

    Args:
        prepared: The data.
        settings: What to do.
        run: Where to record it.
        say: Takes the lines for the person at the terminal.

    Returns:
        The pretrained model, and the run's metrics.
    """
    training = settings.pretraining
    data = CrystalDataModule(
        str(prepared.pretraining),
        exclude=[str(prepared.adaptation)],
        exclude_by="structure",
        batch_size=training.batch_size,
    )
    lightning.seed_everything(run.seed, verbose=False)
    heads = {name: HeadSpec(HEAD, {}, data.property_of(name)) for name in PLENTIFUL}
    spec = ModelSpec(dict(settings.encoder), heads)
    module = build_module(spec, Optimization(learning_rate=training.learning_rate))
    data.choose(module.names, module.encoder.recipe)
    say(f"pretrain: {', '.join(data.names)}; {len(data.split.train)} crystals train; {data.split.how}")
    for note in data.split.notes:
        say(note)
    fit_scalers(module, data)
    module.card = make_card(spec, module, data)
    heads_config = {name: {"class_path": HEAD} for name in heads}
    trainer = training.trainer()
    results = train(module, data, run, trainer, _config(module, data, run, trainer) | {"heads": heads_config})
    return load_checkpoint(run.folder / "checkpoints" / "last.ckpt"), results


def adapt_all(
    prepared: Prepared, settings: Settings, pretrained: Checkpoint, run: RunSettings, say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], dict[str, Values]]:
    """Adapt to the held-back property by every strategy, several seeds each.

    Args:
        prepared: The data.
        settings: What to do.
        pretrained: Where the adapted encoders start.
        run: Where to record it; every model has a folder of its own in there.
        say: Takes the lines for the person at the terminal.

    Returns:
        A row of results per strategy, and strategy -> [K, 2] test targets and mean predictions of its models.
    """
    rows, pairs = [], {}
    total = len(settings.strategies) * settings.seeds
    with tqdm(total=total, desc="adapting", unit=" models", disable=None) as bar:
        for name, training in settings.strategies.items():
            data = few_labels(prepared, training.batch_size)
            folder = run.folder / name
            models, results = [], []
            for seed in range(settings.seeds):
                member = RunSettings(folder / f"seed{seed}", run.wandb, seed, group=f"adapt-{name}")
                model, result = _adapt(settings, name, training, pretrained, data, member)
                models.append(model)
                results.append(result)
                bar.update()
            ensemble, found, _ = evaluate(Ensemble(models), data, "test")
            pairs[name] = found[HELD_BACK]
            errors = [float(result["test"][HELD_BACK]["mae"]) for result in results]
            rows.append(
                {
                    "strategy": name,
                    "mae": errors,
                    "ensemble_mae": ensemble[HELD_BACK]["mae"],
                    "trainable_parameters": results[0]["trainable_parameters"],
                    "seconds": [result["seconds"] for result in results],
                    **asdict(training),
                }
            )
            say(f"{name}: {len(models)} models adapted, test MAE {np.mean(errors):.3g} {ensemble[HELD_BACK]['unit']}")
    return rows, pairs


def few_labels(prepared: Prepared, batch_size: int = 32) -> CrystalDataModule:
    """The adaptation store with its given lists."""
    return CrystalDataModule(str(prepared.adaptation), splits=str(prepared.splits), batch_size=batch_size)


def _adapt(
    settings: Settings,
    name: str,
    training: Training,
    pretrained: Checkpoint,
    data: CrystalDataModule,
    run: RunSettings,
) -> tuple[MultiTaskModule, dict[str, Any]]:
    """One model, and what its metrics.json holds."""
    strategy = strategy_named(name)
    head = HeadSpec(HEAD, {}, data.property_of(HELD_BACK))
    optimization = Optimization(learning_rate=training.learning_rate)
    adaptation = Adaptation.of(head, dict(settings.encoder), optimization, strategy, pretrained)
    data.choose([HELD_BACK], adaptation.spec.build_encoder().recipe)
    module, _ = adaptation.module(data, run.seed)
    trainer = {**training.trainer(), "enable_progress_bar": False}  # one bar for all models instead
    config = _config(module, data, run, trainer) | {
        "pretrained": str(pretrained.path),
        "property": HELD_BACK,
        "strategy": strategy_config(name),
        "head": {"class_path": HEAD},
    }
    return module, train(module, data, run, trainer, config, strategy)


def _config(
    module: MultiTaskModule, data: CrystalDataModule, run: RunSettings, trainer: dict[str, Any]
) -> dict[str, Any]:
    """The configuration with which `foundation pretrain` or `foundation adapt` does the same."""
    return {
        "name": run.folder.name,
        "seed": run.seed,
        "wandb": run.wandb,
        "data": {name: value for name, value in data.config.items() if name != "seed"},
        "encoder": module.card["spec"]["encoder"],
        "optimization": asdict(module.optimization),
        "trainer": trainer,
    }
