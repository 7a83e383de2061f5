"""Gradients of every optimizer step of an epoch, and validation, on one process or as one of several.

Run as ``python gradients.py STORE OUT`` with torchrun's variables in the environment, once per process.
"""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
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
from foundation.training.denoising import AT_REST, Displacements, module_kind
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.scaling import fit_scalers
from foundation.training.spec import HeadSpec, ModelSpec
from foundation.training.trainer import silence_lightning
from foundation.training.weighting import UncertaintyWeights

NAMES = ["formation_energy_per_atom", "band_gap", "shear_modulus"]
ACCUMULATE = (1, 2)
VALIDATED = (13, 7, 1)
DISTURBED = Displacements(share=0.5)


class Recorder(Callback):
    """Keeps the gradients after every optimizer step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if trainer.global_step > len(self.steps):
            self.steps.append({name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None})


def make_module(data: CrystalDataModule, displacements: Displacements = AT_REST) -> tuple[MultiTaskModule, ModelSpec]:
    """A tiny encoder with three heads and learned task weights, in double precision, ready to train on the data."""
    torch.manual_seed(0)
    spec = ModelSpec(TINY_ENCODER, {name: HeadSpec("heads.ScalarHead", {}, KNOWN[name]) for name in NAMES})
    kind = module_kind(displacements, seed=0)
    module = build_module(spec, Optimization(), kind=kind, weighting=UncertaintyWeights(NAMES)).double()
    data.choose(NAMES, module.encoder.recipe)
    fit_scalers(module, data)
    return module, spec


def gradients(
    store: Path, batch_size: int, accumulate: int, displacements: Displacements = AT_REST, **trainer_args: Any
) -> list[dict[str, Tensor]]:
    """Train one epoch in double precision with learned task weights."""
    with default_dtype(torch.float64), warnings.catch_warnings():
        silence_lightning()
        warnings.filterwarnings("ignore", message=".*across ranks is zero. Please be cautious.*")
        data = CrystalDataModule(str(store), batch_size=batch_size)
        module, _ = make_module(data, displacements)
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


def validations(store: Path, batch_size: int, **trainer_args: Any) -> list[dict[str, float]]:
    """Metrics of validating ever fewer crystals, none of which has the last property, the last time one crystal."""
    found = []
    with default_dtype(torch.float64), warnings.catch_warnings():
        silence_lightning()
        warnings.filterwarnings("ignore", message=".*across ranks is zero. Please be cautious.*")
        data = CrystalDataModule(str(store), batch_size=batch_size)
        module, _ = make_module(data)
        without = data.split.train[~data.labelled[data.split.train, -1]]
        for count in VALIDATED:
            data._split = replace(data.split, val=without[:count])
            trainer = lightning.Trainer(
                accelerator="cpu",
                use_distributed_sampler=False,
                logger=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                **trainer_args,
            )
            trainer.validate(module, datamodule=data, verbose=False)
            found.append({name: float(value) for name, value in trainer.callback_metrics.items()})
    return found


if __name__ == "__main__":
    together: dict[str, Any] = {"strategy": "ddp", "devices": 2}
    steps = [gradients(Path(sys.argv[1]), 3, accumulate, **together) for accumulate in ACCUMULATE]
    steps += [gradients(Path(sys.argv[1]), 3, accumulate, DISTURBED, **together) for accumulate in ACCUMULATE]
    metrics = validations(Path(sys.argv[1]), 3, **together)
    if torch.distributed.get_rank() == 0:
        torch.save((steps, metrics), sys.argv[2])
