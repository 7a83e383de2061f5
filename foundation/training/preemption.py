"""When a run saves itself to go on from there, and how it leaves when it is asked to stop.

A signal is only noted (``foundation.stopping``). In every training step the processes agree whether any of them has
been asked (``foundation.training.vote``), save together behind it, and leave together; under Slurm the first of them
has the job started again. A signal that comes after a step's vote is seen in the next one, or by the hooks of
validation and of epochs, which ask for themselves.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor

from foundation.slurm.job import Job
from foundation.stopping import Preempted, asked_to_stop, note
from foundation.training.agreement import any_process
from foundation.training.checkpoint_files import LAST, clear_torn
from foundation.training.optimization import ExponentialAverage
from foundation.training.vote import Wishes

# What Lightning holds of a validation that was left in its first batch, to which it goes back.
_BEGUN = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
_VALIDATION = "epoch_loop.val_loop.batch_progress"


class Leaving(Exception):
    """All processes have saved and leave; says where."""


class Preemption(Checkpoint):
    """Writes ``last.ckpt`` at the end of every epoch, in between where that is long ago, and before it stops.

    A checkpoint, so that Lightning calls it behind all other callbacks: weights are averaged by then.

    Args:
        folder: Where checkpoints are.
        every: Seconds after which an epoch is saved in its middle.
    """

    def __init__(self, folder: Path, every: float) -> None:
        self.file = folder / LAST
        self.every = every
        self.saved = time.monotonic()
        self.validation_is_open = False

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Take note of signals from here on; Lightning will set a handler for SIGTERM, so that waits until then."""
        if trainer.is_global_zero:
            clear_torn(self.file.parent)
        note(signal.SIGUSR1)
        note(signal.SIGTERM, wait=True)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Leave before anything slow, such as compiling, where the signal came during the start."""
        if self._any_asked(trainer):
            self._leave(trainer, "before its first step")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Take the place of Lightning's handler, which talks to other processes from inside of it and can hang."""
        if note(signal.SIGTERM):
            # Nor do all processes have to wait for the first in every batch to hear of that handler.
            trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        self.saved = time.monotonic()

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Tensor) -> None:
        """Say what this process wishes, for the vote on this batch."""
        pl_module.vote.wishes = Wishes(asked_to_stop() is not None, time.monotonic() - self.saved >= self.every)

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        """Save and leave, or save only; not while gradients are being accumulated, which are not saved.

        Where validation or the end of the epoch comes next, these have their own hooks: Lightning would not go back
        to them.
        """
        loop = trainer.fit_loop.epoch_loop
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if loop._should_accumulate() or loop._num_ready_batches_reached() or loop._should_check_val_fx(fetcher):
            return
        granted: Wishes = pl_module.vote.granted
        if granted.stop or granted.save:
            self._save(trainer)
        if granted.stop:
            self._leave(trainer)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Validation can be long, so it is broken off and begun anew when the run goes on."""
        self._break_off_validation(trainer, pl_module, averaged=False)

    def on_validation_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        self._break_off_validation(trainer, pl_module, averaged=True)

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Save; what the epoch logs is written behind this hook, so the run leaves only at the next."""
        self._save(trainer)

    def on_train_epoch_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Leave where asked."""
        _write_rows(trainer)
        if self._any_asked(trainer):
            self._leave(trainer)

    def on_train_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        _write_rows(trainer)

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Let a validation that is being broken off begin from its start."""
        if self.validation_is_open:
            checkpoint["loops"]["fit_loop"][_VALIDATION] = {
                "total": dict(_BEGUN),
                "current": dict(_BEGUN),
                "is_last_batch": False,
            }

    def _break_off_validation(self, trainer: lightning.Trainer, module: Any, averaged: bool) -> None:
        if trainer.sanity_checking or not self._any_asked(trainer):
            return
        if averaged:  # the averaged weights validate; those that train are put back before they are saved
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, ExponentialAverage):
                    callback.on_validation_epoch_end(trainer, module)
        self.validation_is_open = True
        self._save(trainer)
        self._leave(trainer)

    def _any_asked(self, trainer: lightning.Trainer) -> bool:
        return any_process([asked_to_stop() is not None], trainer.strategy.root_device)[0]

    def _save(self, trainer: lightning.Trainer) -> None:
        _write_rows(trainer)
        trainer.save_checkpoint(self.file)
        self.saved = time.monotonic()

    def _leave(self, trainer: lightning.Trainer, where: str = "") -> None:
        raise Leaving(where or f"at step {trainer.global_step}")


def _write_rows(trainer: lightning.Trainer) -> None:
    """Rows that wait in memory would be missing behind a checkpoint."""
    for logger in trainer.loggers:
        logger.save()


def farewell(where: str, file: Path, first: bool) -> Preempted:
    """Have the job started again, and say what becomes of the run.

    Args:
        where: Where it stopped.
        file: What it goes on from.
        first: Whether this is the process that speaks to Slurm.
    """
    number = asked_to_stop()
    told = signal.Signals(number).name if number is not None else "a signal to another process"
    code = 128 + (number or signal.SIGTERM)
    saved = f"; saved in {file}" if file.exists() else ""
    stopped = f"stopped {where} by {told}{saved}"
    job = Job.here()
    if not first:
        return Preempted("", 0 if job else code)
    go_on = f"go on with the same command and --resume {file if file.exists() else 'auto'}"
    if job is None:
        return Preempted(f"{stopped}; {go_on}", code)
    # Told before: a job that is requeued has no time to speak afterwards.
    print(f"foundation: {stopped}; having job {job.id} started again", file=sys.stderr, flush=True)
    reason = job.requeue()
    if reason is None:
        return Preempted("", 0)
    return Preempted(f"not requeued, {reason}; {go_on}", code)
