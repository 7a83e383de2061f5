"""When a run saves itself to go on from there, and how it leaves when it is asked to stop.

A signal is only noted (``foundation.stopping``). Between two batches the processes agree whether any of them has been
asked, save together, and leave together; under Slurm the first of them has the job started again.
"""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Checkpoint

from foundation.slurm.job import Job
from foundation.stopping import Preempted, asked_to_stop, note
from foundation.training.agreement import Sum
from foundation.training.checkpoint_files import LAST, clear_torn
from foundation.training.optimization import ExponentialAverage

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
        self._told: Sum | None = None  # whether to stop or save behind the batch that is being computed

    def setup(self, trainer: lightning.Trainer, pl_module: Any, stage: str) -> None:
        """Take note of signals from here on; Lightning will set a handler for SIGTERM, so that waits until then."""
        if trainer.is_global_zero:
            clear_torn(self.file.parent)
        note(signal.SIGUSR1)
        note(signal.SIGTERM, wait=True)

    def on_fit_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Leave before anything slow, such as compiling, where the signal came during the start."""
        if self._agree(trainer)[0]:
            self._leave(trainer, "before its first step")

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Take the place of Lightning's handler, which talks to other processes from inside of it and can hang."""
        note(signal.SIGTERM)
        self.saved = time.monotonic()

    def on_before_backward(self, trainer: lightning.Trainer, pl_module: Any, loss: Any) -> None:
        """Ask all processes; they answer while gradients are computed."""
        self._told = self._ask(trainer)

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
        assert self._told is not None
        asked, due = _answer(self._told)
        if asked or due:
            self._save(trainer)
        if asked:
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
        if self._agree(trainer)[0]:
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
        if trainer.sanity_checking or not self._agree(trainer)[0]:
            return
        if averaged:  # the averaged weights validate; those that train are put back before they are saved
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, ExponentialAverage):
                    callback.on_validation_epoch_end(trainer, module)
        self.validation_is_open = True
        self._save(trainer)
        self._leave(trainer)

    def _agree(self, trainer: lightning.Trainer) -> tuple[bool, bool]:
        """Whether any process was asked to stop, and whether any finds that it is time to save."""
        return _answer(self._ask(trainer))

    def _ask(self, trainer: lightning.Trainer) -> Sum:
        facts = [asked_to_stop() is not None, time.monotonic() - self.saved >= self.every]
        return Sum(torch.tensor(facts, dtype=torch.int32, device=trainer.strategy.root_device))

    def _save(self, trainer: lightning.Trainer) -> None:
        _write_rows(trainer)
        trainer.save_checkpoint(self.file)
        self.saved = time.monotonic()

    def _leave(self, trainer: lightning.Trainer, where: str = "") -> None:
        raise Leaving(where or f"at step {trainer.global_step}")


def _answer(told: Sum) -> tuple[bool, bool]:
    asked, due = told.result().tolist()
    return asked > 0, due > 0


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
