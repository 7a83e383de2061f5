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
from foundation.training.shards import local
from foundation.training.trainer import make_trainer, silence_lightning

# Five steps: an epoch of five batches, or more than one of them in pairs.
ONCE: dict[str, Any] = {"max_epochs": 1}
PAIRS: dict[str, Any] = {"max_epochs": 2, "max_steps": 5, "accumulate_grad_batches": 2}
TWICE: dict[str, Any] = {"max_epochs": 2}


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
        module.optimization = Optimization(optimizer="muon", schedule_epochs=3)
        module.card = make_card(spec, module, data)
        arguments = {"accelerator": "cpu", "devices": 2, "gradient_clip_val": 0.5, "enable_progress_bar": False}
        arguments |= trainer_args
        held = Held()
        loggers: list[Any] = [CSVLogger(folder, name="", version="")]
        trainer = make_trainer(folder, loggers, module, True, [held], arguments, save_every=600)
        trainer.fit(module, datamodule=data, ckpt_path=resume, weights_only=True)
        assert trainer.global_step == (10 if trainer_args["max_epochs"] == 2 and "max_steps" not in trainer_args else 5)
    return module, held.count


def weights_of(trained: tuple[MultiTaskModule, int]) -> tuple[dict[str, Tensor], int]:
    """All weights after training, and how many this process held meanwhile."""
    module, held = trained
    return {name: parameter.detach() for name, parameter in module.named_parameters()}, held


if __name__ == "__main__":
    store, out = map(Path, sys.argv[1:])
    found = {}
    for strategy in ("ddp", "fsdp2"):
        for name, more in (("1", ONCE), ("2", PAIRS)):
            found[f"{strategy}, {name}"] = weights_of(
                train(store, out / f"{strategy}, {name}", strategy=strategy, **more)
            )
    found["ddp, long"] = weights_of(train(store, out / "long", strategy="ddp", **TWICE))
    for begun, strategy in (("ddp", "fsdp2"), ("fsdp2", "fsdp2"), ("fsdp2", "ddp")):
        folder = out / f"{begun}, then {strategy}"
        last = out / f"{begun}, 1" / "checkpoints" / "last.ckpt"
        found[folder.name] = weights_of(train(store, folder, last, strategy=strategy, **TWICE))
    if torch.distributed.get_rank() == 0:
        torch.save(found, out / "weights.pt")
