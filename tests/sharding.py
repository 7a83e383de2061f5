"""Weights after a few steps of two processes, by DDP and by FSDP2.

Run as ``python sharding.py STORE OUT`` with torchrun's variables in the environment, once per process.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from gradients import make_module
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import CSVLogger
from testing import default_dtype
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from foundation.checkpoint import make_card
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.sharded import local
from foundation.training.trainer import make_trainer, silence_lightning

STEPS = 5  # an epoch
RUNS: dict[str, dict[str, Any]] = {
    f"{strategy}, {accumulate}": {"strategy": strategy, "accumulate_grad_batches": accumulate}
    for strategy in ("ddp", "fsdp2")
    for accumulate in (1, 2)
}


class Held(Callback):
    """How many weights this process holds while it trains."""

    count = 0

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        self.count = sum(local(parameter).numel() for parameter in pl_module.parameters())


def train(store: Path, folder: Path, resume: Path | None = None, **trainer_args: Any) -> tuple[MultiTaskModule, int]:
    """Train in double precision with learned task weights, clipped gradients and averaged weights."""
    with default_dtype(torch.float64), warnings.catch_warnings():
        silence_lightning()
        data = CrystalDataModule(str(store), batch_size=4)
        module, spec = make_module(data)
        module.optimization = Optimization(schedule_epochs=3)
        module.card = make_card(spec, module, data)
        arguments = {"accelerator": "cpu", "devices": 2, "max_steps": STEPS, "max_epochs": 3, "gradient_clip_val": 0.5}
        arguments |= {"enable_progress_bar": False, **trainer_args}
        held = Held()
        loggers: list[Any] = [CSVLogger(folder, name="", version="")]
        trainer = make_trainer(folder, loggers, module, True, [held], arguments)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
    return module, held.count


def weights_of(trained: tuple[MultiTaskModule, int]) -> tuple[dict[str, Tensor], int]:
    """All weights after training, and how many this process held meanwhile."""
    module, held = trained
    return {name: parameter.detach() for name, parameter in module.named_parameters()}, held


if __name__ == "__main__":
    store, out = map(Path, sys.argv[1:])
    found = {name: weights_of(train(store, out / name, **args)) for name, args in RUNS.items()}
    found["ddp, long"] = weights_of(train(store, out / "long", strategy="ddp", max_steps=2 * STEPS))
    for begun, strategy in (("ddp", "fsdp2"), ("fsdp2", "fsdp2"), ("fsdp2", "ddp")):
        folder = out / f"{begun}, then {strategy}"
        last = out / f"{begun}, 1" / "checkpoints" / "last.ckpt"
        found[folder.name] = weights_of(train(store, folder, last, strategy=strategy, max_steps=2 * STEPS))
    if torch.distributed.get_rank() == 0:
        torch.save(found, out / "weights.pt")
