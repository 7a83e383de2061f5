"""One training run: its folder, its trainer, and what it leaves behind."""

from __future__ import annotations

import json
import shutil
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning
import torch
import yaml
from lightning.pytorch.loggers import Logger

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation import plots
from foundation.files import write_json, write_text
from foundation.inference import Ensemble, evaluate
from foundation.largest_errors import largest_errors
from foundation.manifest import with_data
from foundation.process import is_first_process
from foundation.resuming import NEVER, step_of
from foundation.slurm.job import Job
from foundation.strategies.base import AdaptationStrategy
from foundation.tracking.artifacts import record_inputs
from foundation.tracking.ending import record_ending
from foundation.tracking.facts import recorded_config
from foundation.tracking.guard import Guard, GuardedLogger
from foundation.tracking.identity import identify
from foundation.tracking.logger import Tracker, wandb_logger
from foundation.training.calibration import calibrate
from foundation.training.checkpoint_files import LAST
from foundation.training.compilation import Asked, Compilation, require_compiler, stored_choice
from foundation.training.finishing import Finishing
from foundation.training.history import History, kept_history
from foundation.training.module import MultiTaskModule
from foundation.training.precision import MatmulPrecision, check_precision
from foundation.training.preemption import Leaving, farewell
from foundation.training.scaling import unreachable
from foundation.training.sharded import check_sharding, is_sharded
from foundation.training.spec import ModelSpec
from foundation.training.trainer import make_trainer, silence_lightning


@dataclass(frozen=True)
class RunSettings:
    """Where and how a run is recorded.

    Attributes:
        folder: The run's folder.
        wandb: "offline", "online" or "off".
        seed: Seed of weights and batches.
        resume: Checkpoint of this run to go on from.
        save_every: Seconds after which an epoch is saved in its middle.
        group: Name that ties runs together in Weights & Biases where they start from fresh weights, None for a group
            of its own; an adaptation is in the group of its pretraining.
        compile: Whether the encoder's training step is compiled: slow to start, then two to three times faster.
            "auto" compiles where the run is long enough to pay for it, and goes on as before after a resume.
        runs: How many models of this architecture train one after another in this process.
        matmul_precision: "highest" for matrix products in single precision, "high" to allow TF32 on a GPU.
    """

    folder: Path
    wandb: str = "off"
    seed: int = 0
    resume: str | None = None
    save_every: float = 600.0
    group: str | None = None
    compile: Asked = False
    runs: int = 1
    matmul_precision: MatmulPrecision = "highest"


def claim_folder(out: str | None, name: str, resume: str | None, overwrite: bool) -> Path:
    """The folder of a run: ``out``, or ``runs/NAME`` with a number behind it if that is taken.

    Under Slurm it is ``runs/NAME-JOB``, which a job that is started again finds again. Nothing is created yet.

    Raises:
        InputError: If ``out``, or the job's folder, already holds a run that is not to be resumed.
    """
    job = Job.here()
    if out is None and job is not None:
        out = f"runs/{name}-{job.id}"
    folder = Path(out) if out is not None else Path("runs") / name
    if not is_first_process():
        return folder  # the first process decides; the others write nothing
    taken = (folder / "config.yaml").exists() or (folder / "checkpoints").exists()
    if not taken or resume not in (None, NEVER) or overwrite:
        return folder
    if out is not None:
        raise InputError(f"--out {out}: holds a run already; choose another folder, --resume it, or say --overwrite")
    number = 2
    while Path(f"{folder}-{number}").exists():
        number += 1
    return Path(f"{folder}-{number}")


def clear_run(folder: Path) -> None:
    """Remove what an earlier run left in a folder that is to be overwritten, and nothing else."""
    if not is_first_process():
        return
    left = ("config.yaml", "metrics*", "errors.csv", "checkpoints", "model", "plots", "wandb*", "seed*", "fold*")
    for pattern in left:
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def train(
    module: MultiTaskModule,
    data: CrystalDataModule,
    settings: RunSettings,
    trainer_args: Mapping[str, Any],
    config: Mapping[str, Any],
    strategy: AdaptationStrategy | None = None,
) -> dict[str, Any]:
    """Train, evaluate on validation and test crystals, and write everything into the run's folder.

    Args:
        module: The module; it holds the averaged weights of the last step afterwards.
        data: Its data.
        settings: Where and how the run is recorded.
        trainer_args: Arguments of ``lightning.Trainer``.
        config: The whole configuration, to be written as config.yaml.
        strategy: What else is done during and after training.

    Returns:
        What metrics.json holds.

    Raises:
        InputError: If this machine cannot compile and is told to, or the precision is too low.
        Preempted: If a signal asked the run to stop; it has been saved.
    """
    check_precision(trainer_args.get("precision"))
    if settings.compile is True:
        require_compiler()
    torch.set_float32_matmul_precision(settings.matmul_precision)
    folder = settings.folder
    module.seen = with_data(module.seen, data)
    if is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / "config.yaml", yaml.safe_dump(json.loads(json.dumps(config, default=str)), sort_keys=False))
    module.card["run"] = identify(folder, module.card, settings.group)
    loggers: list[Logger] = [GuardedLogger(History(folder), Guard("writing metrics.csv"))]
    tracker = track(module, data, settings, config)
    if tracker is not None:
        loggers.append(tracker)
    compilation = Compilation(settings.compile, stored_choice(settings.resume), settings.runs)
    own = strategy.callbacks() if strategy is not None else []
    if is_sharded(trainer_args):
        check_sharding(module, own)
    trainer = make_trainer(
        folder, loggers, module, len(data.split.val) > 0, [*own, compilation], trainer_args, settings.save_every
    )
    last = folder / "checkpoints" / LAST
    try:
        with tracker.failing(unless=Leaving) if tracker is not None else nullcontext():
            seconds = _fit(trainer, module, data, settings)
            if trainer.checkpoint_callback is not None and not last.exists():  # no epoch was asked for
                trainer.save_checkpoint(last)
            results = _finish(module, data, folder, Finishing(trainer, last), seconds, strategy)
    except Leaving as leaving:
        raise farewell(str(leaving), last, is_first_process()) from None
    if tracker is not None:
        record_ending(tracker, results, folder)
        tracker.finish()
    return results


def track(
    module: MultiTaskModule, data: CrystalDataModule, settings: RunSettings, config: Mapping[str, Any]
) -> Tracker | None:
    """Begin the record of a run, or go on with it, with what it stands on; None where there is none."""
    if settings.wandb == "off" or not is_first_process():
        return None
    run = module.card["run"]
    facts = recorded_config(config, module, data)
    job = "adapt" if module.card["pretrained"] else "train"
    tracker = wandb_logger(settings.wandb, settings.folder, run["group"], facts, run["id"], job)
    if tracker is not None:
        record_inputs(tracker, module.card, data)
    return tracker


def _fit(trainer: lightning.Trainer, module: MultiTaskModule, data: CrystalDataModule, settings: RunSettings) -> float:
    """Train, from where the run goes on; returns the seconds that it took.

    Raises:
        Leaving: If a signal asked the run to stop; it has been saved.
    """
    started = time.perf_counter()
    step = step_of(settings.resume) if is_first_process() and settings.resume is not None else None
    with warnings.catch_warnings(), kept_history(settings.folder / "metrics.csv", step):
        silence_lightning()
        trainer.fit(module, datamodule=data, ckpt_path=settings.resume, weights_only=True)
    return time.perf_counter() - started


def _finish(
    module: MultiTaskModule,
    data: CrystalDataModule,
    folder: Path,
    finishing: Finishing,
    seconds: float,
    strategy: AdaptationStrategy | None,
) -> dict[str, Any]:
    """All that comes behind the last step; returns what metrics.json holds, in the first process.

    Raises:
        Leaving: If a signal asked the run to stop.
    """
    finishing.leave_if_asked()
    calibrate(module, data, folder)
    finishing.leave_if_asked()
    found = strategy.finish(module, data, folder) if strategy is not None else {}
    finishing.leave_if_asked()
    on_first = finishing.trainer.is_global_zero
    return _report(module, data, folder, finishing, seconds, found) if on_first else {}


def _report(
    module: MultiTaskModule,
    data: CrystalDataModule,
    folder: Path,
    finishing: Finishing,
    seconds: float,
    found: dict[str, Any],
) -> dict[str, Any]:
    ensemble = Ensemble([module])
    results: dict[str, Any] = {
        "epochs": finishing.trainer.current_epoch,
        "steps": finishing.trainer.global_step,
        "seconds": round(seconds, 1),
        "trainable_parameters": sum(p.numel() for p in module.parameters() if p.requires_grad),
        "encoder": {"config_hash": ModelSpec.from_dict(module.card["spec"]).encoder_hash},
        "split": data.split.how,
        "notes": data.split.notes,
        **found,
    }
    evaluations = {part: evaluate(ensemble, data, part, finishing.until_asked) for part in ("val", "test")}
    results |= {part: evaluation.metrics for part, evaluation in evaluations.items()}
    results["not_positive_definite"] = unreachable(module, data)
    write_json(folder / "metrics.json", results)
    judged = "test" if len(data.split.test) else "val"
    write_text(folder / "errors.csv", largest_errors(evaluations[judged].errors, data, judged).to_csv(index=False))
    plots.parity(
        evaluations[judged].pairs,
        {name: data.property_of(name).unit for name in data.names},
        folder / "plots" / "parity.png",
    )
    if (folder / "metrics.csv").is_file():
        plots.learning_curves(folder / "metrics.csv", folder / "plots" / "learning_curves.png")
    return results
