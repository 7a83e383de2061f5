"""Between the pretrained and the adapted weights (Wortsman et al., CVPR 2022)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation.checkpoint import Checkpoint
from foundation.rewriting import replace_weights
from foundation.strategies.full import Full
from foundation.training.module import MultiTaskModule

SHARES = [round(0.1 * step, 1) for step in range(11)]


class Interpolate(Full):
    """The whole encoder trains; then each of its weights is set between where it started and where it came to.

    How far is chosen by the loss on the validation crystals.

    Args:
        layer_decay: Factor on the learning rate per block away from the readout; 1 for none.
        rate: Rate of the encoder relative to the head's.
    """

    def __init__(self, layer_decay: float = 1.0, rate: float = 1.0) -> None:
        super().__init__(layer_decay, rate)
        self._start: dict[str, Tensor] = {}

    def prepare(self, module: MultiTaskModule, data: CrystalDataModule, pretrained: Checkpoint | None) -> None:
        """Keep the pretrained weights.

        Raises:
            InputError: If no crystal validates.
        """
        if not len(data.split.val):
            raise InputError("interpolate: needs validation crystals to choose by; give --data.val_share")
        self._start = {name: weight.detach().clone() for name, weight in module.encoder.named_parameters()}

    def finish(self, module: MultiTaskModule, data: CrystalDataModule, folder: Path) -> dict[str, Any]:
        """Choose the share of the way, and put the weights there in the module and in its last checkpoint."""
        end = {name: weight.detach().clone() for name, weight in module.encoder.named_parameters()}
        losses = {}
        for share in SHARES:
            self._go(module, end, share)
            losses[share] = _loss(module, data)
        best = min(losses, key=lambda share: losses[share])
        self._go(module, end, best)
        replace_weights(folder / "checkpoints" / "last.ckpt", module.state_dict())
        return {"interpolation": {"share": best, "val_loss": losses}}

    @torch.no_grad()
    def _go(self, module: MultiTaskModule, end: dict[str, Tensor], share: float) -> None:
        for name, weight in module.encoder.named_parameters():
            weight.copy_(torch.lerp(self._start[name].to(weight.device), end[name], share))


@torch.no_grad()
def _loss(module: MultiTaskModule, data: CrystalDataModule) -> float:
    """Mean scaled loss over the labels that validate."""
    module.eval()
    total, labels = 0.0, 0
    for batch in data.loader("val"):
        sums, counts, _ = module.losses(batch.to(module.device))
        total += float(sums.sum())
        labels += int(counts.sum())
    return total / max(1, labels)
