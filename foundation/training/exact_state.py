"""What a checkpoint must hold, beyond what Lightning keeps, to go on in the middle of an epoch as if nothing had been.

That is, for every process: its random numbers and what its metrics have gathered so far; and how far the epoch is.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback
from torchmetrics import Metric

from datamodules.errors import InputError
from foundation.training.agreement import gathered

_KEY = "exact_state"


class ExactState(Callback):
    """Puts it into every checkpoint, and takes it from there when a run goes on."""

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None  # in the checkpoint that this run goes on from
        self.before_validation: dict[str, Any] | None = None  # while it lasts: it begins anew after a break

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Gather it from all processes; called on all of them."""
        checkpoint[_KEY] = {
            "processes": gathered(self.before_validation or _of_this_process(pl_module)),
            "batches": trainer.num_training_batches,
        }

    def on_load_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Keep it until training starts."""
        self.found = checkpoint.get(_KEY)

    def on_validation_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.before_validation = _of_this_process(pl_module)

    def on_validation_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.before_validation = None

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        """Take up what was found, and begin the epoch where it was left.

        Raises:
            InputError: If an epoch was left in the middle and has other batches now, or processes disagree.
        """
        steps = gathered(trainer.global_step)
        if len(set(steps)) > 1:
            raise InputError(f"--resume: the processes read different checkpoints, of steps {steps}; start again")
        if self.found is None:
            return
        epochs: Any = trainer.fit_loop.epoch_progress.current
        in_the_middle = epochs.processed < epochs.ready
        passed = trainer.fit_loop.epoch_loop.batch_progress.current.ready if in_the_middle else 0
        same_world = len(self.found["processes"]) == trainer.world_size
        if passed and (not same_world or self.found["batches"] != trainer.num_training_batches):
            raise InputError(
                f"--resume: saved in the middle of an epoch of {self.found['batches']} batches in "
                f"{len(self.found['processes'])} processes; this run has {trainer.num_training_batches} in "
                f"{trainer.world_size}: go on with as many processes, the same batch size and the same store"
            )
        loader: Any = trainer.train_dataloader
        loader.sampler.go_to(epochs.processed, passed)
        if same_world:
            _restore(pl_module, self.found["processes"][trainer.global_rank])
        elif trainer.is_global_zero:
            print("resume: another number of processes than before, so their random numbers are new", file=sys.stderr)
        self.found = None


def _of_this_process(module: Any) -> dict[str, Any]:
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, np.asarray(keys).tolist(), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        "metrics": {
            name: {"updates": metric.update_count, "state": _on_cpu(metric.metric_state)}
            for name, metric in _metrics(module).items()
            if metric.update_count
        },
    }


def _restore(module: Any, state: dict[str, Any]) -> None:
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, values, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(values, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    for name, metric in _metrics(module).items():
        if name in state["metrics"]:
            kept = state["metrics"][name]
            for key, value in _on(metric.device, kept["state"]).items():
                setattr(metric, key, value)
            metric._update_count, metric._computed = kept["updates"], None


def _metrics(module: Any) -> dict[str, Metric]:
    return {name: part for name, part in module.named_modules() if isinstance(part, Metric)}


def _on_cpu(state: dict[str, Any]) -> dict[str, Any]:
    return _on(torch.device("cpu"), state)


def _on(device: torch.device, state: dict[str, Any]) -> dict[str, Any]:
    """A copy of a metric's state, of tensors and lists of tensors, on a device."""

    def moved(value: Any) -> Any:
        if isinstance(value, list):
            return [moved(item) for item in value]
        return value.detach().to(device, copy=True) if isinstance(value, torch.Tensor) else value

    return {name: moved(value) for name, value in state.items()}
