"""The trainers: of a run that is recorded, and of one that leaves nothing behind."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import Logger

from datamodules.datamodule import CrystalDataModule
from foundation.stopping import let_go
from foundation.strategies.base import AdaptationStrategy
from foundation.training.checkpoint_files import AtomicCheckpointIO
from foundation.training.exact_state import ExactState
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import ExponentialAverage
from foundation.training.preemption import Preemption
from foundation.training.sharded import Sharded, ShardedAverage, is_sharded
from foundation.training.watching import watching


class EpochLines(Callback):
    """Progress where there is no terminal to draw a bar on: one line, at most every ten seconds."""

    def __init__(self) -> None:
        self.started = self.told = time.monotonic()

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        """Print the epoch, the time and the validation loss."""
        now = time.monotonic()
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if trainer.is_global_zero and (last or now - self.told >= 10):
            self.told = now
            loss = trainer.callback_metrics.get("val/loss", float("nan"))
            print(
                f"epoch {trainer.current_epoch + 1} of {trainer.max_epochs}, {now - self.started:.0f} s, "
                f"val/loss {float(loss):.4g}",
                file=sys.stderr,
                flush=True,
            )


def fit_quietly(
    module: MultiTaskModule, data: CrystalDataModule, trainer_args: Mapping[str, Any], strategy: AdaptationStrategy
) -> None:
    """Train without a folder: nothing is validated, printed or written; averaged weights are left in the module."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    }
    callbacks = strategy.callbacks()
    if module.optimization.ema_decay > 0:
        callbacks.append(ExponentialAverage(module.optimization.ema_decay))
    chosen = {key: value for key, value in trainer_args.items() if value is not None}
    with warnings.catch_warnings():
        silence_lightning()
        trainer = lightning.Trainer(callbacks=callbacks, use_distributed_sampler=False, **{**chosen, **quiet})
        trainer.fit(module, datamodule=data)


def make_trainer(
    folder: Path,
    loggers: list[Logger],
    module: MultiTaskModule,
    validates: bool,
    own: list[Callback],
    trainer_args: Mapping[str, Any],
    save_every: float,
) -> lightning.Trainer:
    """The trainer of a run: what it saves, prints and averages.

    Args:
        folder: The run's folder.
        loggers: Where metrics go.
        module: What trains.
        validates: Whether any crystal does.
        own: Callbacks of the strategy and of this run.
        trainer_args: Arguments of ``lightning.Trainer``.
        save_every: Seconds after which an epoch is saved in its middle.
    """
    callbacks: list[Callback] = [*own, *watching(is_sharded(trainer_args))]
    if trainer_args.get("enable_checkpointing") is not False:
        callbacks += _saving(folder / "checkpoints", validates, save_every)
    else:
        let_go()
    bar = trainer_args.get("enable_progress_bar") is not False
    if bar and sys.stderr.isatty():
        callbacks.append(TQDMProgressBar(leave=False))
    elif bar:
        callbacks.append(EpochLines())
    if module.optimization.ema_decay > 0:
        average = ShardedAverage if is_sharded(trainer_args) else ExponentialAverage
        callbacks.append(average(module.optimization.ema_decay))
    chosen = {key: value for key, value in trainer_args.items() if value is not None}
    if is_sharded(trainer_args):
        chosen["strategy"] = Sharded()
    chosen["enable_progress_bar"] = bar and sys.stderr.isatty()
    if not validates:
        chosen["limit_val_batches"] = 0
    plugins: list[Any] = [AtomicCheckpointIO()]
    arguments = {"log_every_n_steps": 10, "enable_model_summary": False, "num_sanity_val_steps": 0, **chosen}
    with warnings.catch_warnings():
        silence_lightning()
        if SLURMEnvironment.detect():
            # Lightning's own requeue saves inside a signal handler, which can hang under DDP.
            plugins.append(SLURMEnvironment(auto_requeue=False))
        return lightning.Trainer(
            logger=loggers,
            callbacks=callbacks,
            plugins=plugins,
            default_root_dir=folder,
            use_distributed_sampler=False,  # the data module deals out batches itself
            **arguments,
        )


def _saving(checkpoints: Path, validates: bool, every: float) -> list[Callback]:
    """All that writes checkpoints, and what these need to be gone on from exactly."""
    best = ModelCheckpoint(checkpoints, filename="best", monitor="val/loss", enable_version_counter=False)
    return [ExactState(), *([best] if validates else []), Preemption(checkpoints, every)]


def silence_lightning() -> None:
    """Advice that does not apply: batches are gathered in one go, and runs may be short on purpose."""
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*module.s. in eval mode at the start of training.*",  # what is frozen
        ".*number of training batches.*smaller than the logging interval.*",
        ".*Checkpoint directory.*exists and is not empty.*",
        ".*Experiment logs directory.*exists and is not empty.*",
        ".*GPU available but not used.*",
        ".*Total length of `DataLoader` across ranks is zero.*",  # no crystal validates
        ".*Trying to infer the `batch_size`.*",
        ".*The `srun` command is available on your system but is not used.*",  # on a login node
        ".*The dirpath has changed from.*",  # the folder of a run may be moved
        ".*resuming from a checkpoint that ended before the epoch ended.*",  # the sampler is told where it ended
        ".*It is recommended to use `self.log.*sync_dist=True.*",  # what is logged is reduced already
        ".*FSDP2-wrapped module .* returned a view tensor.*",  # nothing is done to it in place
        ".*isinstance.treespec, LeafSpec.* is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
