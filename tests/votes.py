"""What two processes send one another in a training step, and how they stop where one has a loss that is not finite.

Run as ``python votes.py STORE OUT`` with torchrun's variables in the environment, once per process.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gradients import make_module
from lightning.pytorch.callbacks import Callback
from testing import default_dtype
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from foundation.stopping import held_signals
from foundation.training.module import MultiTaskModule, NonFiniteLoss
from foundation.training.trainer import make_trainer, silence_lightning

COUNTED = 2  # steps, behind the second, in which DDP settles its buckets
BAD = {1: 1, 2: 2}  # accumulated batches -> the batch with a bad loss: of two of a step, the first


class Count(Callback):
    """What is sent in some steps, by the name of the call."""

    def __init__(self) -> None:
        self.sent: dict[str, int] = {}
        self._profile: Any = None

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self._profile = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            self._profile.start()
        if batch_idx == 2 + COUNTED:
            self._profile.stop()
            events = self._profile.key_averages()
            self.sent = {event.key: event.count for event in events if event.key.startswith("c10d::")}


class Watch(Callback):
    """The buffers that a run begins with, and the weights that its last step has left."""

    def __init__(self) -> None:
        self.begun: dict[str, Tensor] = {}
        self.weights: list[Tensor] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.begun = {name: buffer.clone() for name, buffer in pl_module.named_buffers()}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.weights = weights_of(pl_module)


def weights_of(module: MultiTaskModule) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in module.parameters()]


def fit(
    store: Path, folder: Path, accumulate: int, seen: Callable[[int, Any], float], *own: Callback
) -> dict[str, Any]:
    """Train an epoch of five batches.

    Args:
        store: The store.
        folder: Folder of the run.
        accumulate: Batches of a step.
        seen: Called with the place of every batch and its rows; what it returns, the loss is multiplied by.
        own: Callbacks.
    """
    with default_dtype(torch.float64), warnings.catch_warnings(), held_signals():
        silence_lightning()
        data = CrystalDataModule(str(store), batch_size=4)
        module, _ = make_module(data)
        finish, watch, places = module.finish_step, Watch(), iter(range(100))

        def finish_step(batch: Any, sums: Tensor, counts: Tensor, total: Tensor) -> Tensor:
            factor = seen(next(places), batch.row.tolist())
            return finish(batch, sums * factor, counts, total * factor)

        module.finish_step = finish_step  # type: ignore[method-assign]
        arguments = {"accelerator": "cpu", "devices": 2, "strategy": "ddp", "enable_progress_bar": False}
        arguments |= {"max_epochs": 1, "accumulate_grad_batches": accumulate}
        trainer = make_trainer(folder, [], module, True, [watch, *own], arguments, save_every=600)
        stopped = ""
        try:
            trainer.fit(module, datamodule=data)
        except NonFiniteLoss as error:
            stopped = str(error)
        return {
            "stopped": stopped,
            "unchanged": all(map(torch.equal, watch.weights, weights_of(module))),
            "buffers": dict(module.named_buffers()),
            "same buffers": all(torch.equal(watch.begun[name], buffer) for name, buffer in module.named_buffers()),
        }


def fit_badly(store: Path, folder: Path, accumulate: int, rank: int) -> dict[str, Any]:
    """The same with a bad loss in one batch of the second process; its crystals are told as well."""
    rows: list[list[int]] = []

    def seen(place: int, of_batch: list[int]) -> float:
        rows.append(of_batch)
        return float("nan") if (rank, place) == (1, BAD[accumulate]) else 1.0

    found = fit(store, folder, accumulate, seen)
    return {**found, "batches": len(rows), "rows": rows[BAD[accumulate]]}


if __name__ == "__main__":
    store, out, count = Path(sys.argv[1]), Path(sys.argv[2]), Count()
    results: dict[str, Any] = {"well": fit(store, out / "well", 1, lambda *_: 1.0, count), "sent": count.sent}
    rank = torch.distributed.get_rank()
    results |= {f"bad {number}": fit_badly(store, out / f"bad {number}", number, rank) for number in BAD}
    torch.save(results, out / f"{rank}.pt")
