"""The encoder adapts, pulled towards where it started (Li, Grandvalet & Davoine, ICML 2018)."""

from __future__ import annotations

from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from foundation.checkpoint import Checkpoint
from foundation.strategies.full import Full
from foundation.training.module import MultiTaskModule


class L2SP(Full):
    """The whole encoder trains; its weights decay towards the pretrained ones instead of towards zero.

    The pull is decoupled from the gradient, as AdamW's decay is: each step moves a weight by learning rate times
    ``strength`` of the way back.

    Args:
        strength: Pull per unit of learning rate.
        layer_decay: Factor on the learning rate per block away from the readout; 1 for none.
        rate: Rate of the encoder relative to the head's.
    """

    def __init__(self, strength: float = 1.0, layer_decay: float = 1.0, rate: float = 1.0) -> None:
        super().__init__(layer_decay, rate)
        self.strength = strength
        self._start: dict[str, Tensor] = {}

    def prepare(self, module: MultiTaskModule, data: CrystalDataModule, pretrained: Checkpoint | None) -> None:
        """Keep the pretrained weights."""
        self._start = {name: weight.detach().clone() for name, weight in module.encoder.named_parameters()}

    def callbacks(self) -> list[Callback]:
        """The pull."""
        return [_Pull(self.strength, self._start)]


class _Pull(Callback):
    def __init__(self, strength: float, start: dict[str, Tensor]) -> None:
        self.strength = strength
        self.start = start
        self.rates: list[float] | None = None  # of the step just taken; None while gradients are being accumulated

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        weights = dict(pl_module.encoder.named_parameters())
        # The pull takes the place of the decay towards zero.
        pulled = {id(weights[name]) for name in self.start}
        for group in trainer.optimizers[0].param_groups:
            if any(id(weight) in pulled for weight in group["params"]):
                group["weight_decay"] = 0.0
        self.start = {name: tensor.to(weights[name].device) for name, tensor in self.start.items()}

    def on_before_optimizer_step(self, trainer: lightning.Trainer, pl_module: Any, optimizer: Any) -> None:
        self.rates = [group["lr"] for group in optimizer.param_groups]

    @torch.no_grad()
    def on_train_batch_end(self, trainer: lightning.Trainer, pl_module: Any, *_: Any) -> None:
        if self.rates is None:
            return
        start = {id(weight): self.start[name] for name, weight in pl_module.encoder.named_parameters()}
        for group, rate in zip(trainer.optimizers[0].param_groups, self.rates, strict=True):
            for weight in group["params"]:
                if id(weight) in start:
                    weight.lerp_(start[id(weight)], min(1.0, rate * self.strength))
        self.rates = None
