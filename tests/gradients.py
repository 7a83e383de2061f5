"""Gradients of every optimizer step of an epoch, on one process or as one of several.

Run as ``python gradients.py STORE OUT`` with torchrun's variables in the environment, once per process.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from testing import TINY_ENCODER, default_dtype
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from datamodules.properties import KNOWN
from foundation.checkpoint import build_module
from foundation.training.optimization import Optimization
from foundation.training.scaling import fit_scalers
from foundation.training.spec import HeadSpec, ModelSpec
from foundation.training.trainer import silence_lightning
from foundation.training.weighting import UncertaintyWeights

NAMES = ["formation_energy_per_atom", "band_gap", "shear_modulus"]
ACCUMULATE = (1, 2)


class Recorder(Callback):
    """Keeps the gradients after every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


def gradients(store: Path, batch_size: int, accumulate: int, **trainer_args: Any) -> list[dict[str, Tensor]]:
    """Train one epoch in double precision with learned task weights."""
    with default_dtype(torch.float64), warnings.catch_warnings():
        silence_lightning()
        warnings.filterwarnings("ignore", message=".*across ranks is zero. Please be cautious.*")
        torch.manual_seed(0)
        heads = {name: HeadSpec("heads.ScalarHead", {}, KNOWN[name]) for name in NAMES}
        weighting = UncertaintyWeights(NAMES)
        module = build_module(ModelSpec(TINY_ENCODER, heads), Optimization(), weighting=weighting).double()
        data = CrystalDataModule(str(store), batch_size=batch_size)
        data.choose(NAMES, module.encoder.recipe)
        fit_scalers(module, data)
        recorder = Recorder()
        lightning.Trainer(
            accelerator="cpu",
            max_epochs=1,
            accumulate_grad_batches=accumulate,
            use_distributed_sampler=False,
            callbacks=[recorder],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **trainer_args,
        ).fit(module, datamodule=data)
    return recorder.steps


if __name__ == "__main__":
    steps = [gradients(Path(sys.argv[1]), 3, accumulate, strategy="ddp", devices=2) for accumulate in ACCUMULATE]
    if torch.distributed.get_rank() == 0:
        torch.save(steps, sys.argv[2])
