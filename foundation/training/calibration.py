"""Probabilities of classes, calibrated on crystals that did not train."""

from __future__ import annotations

from pathlib import Path

import torch

from datamodules.datamodule import CrystalDataModule
from foundation.inference import Ensemble
from foundation.rewriting import replace_weights
from foundation.training.module import MultiTaskModule

FEWEST = 20  # labels; fewer say nothing of how sure to be


def calibrate(module: MultiTaskModule, data: CrystalDataModule, folder: Path) -> None:
    """Set the temperature of every class head by the validation labels, in the module and in its last checkpoint.

    Args:
        module: A trained module.
        data: Its data.
        folder: The module's run.
    """
    heads = dict(module.named_heads())
    names = [name for name in data.names if heads[name].is_classifier]
    if not names or not len(data.split.val):
        return
    predicted = Ensemble([module]).predict(data.loader("val"))
    done = False
    for name in names:
        target = data.targets(name, data.split.val)
        known = ~torch.isnan(target)
        if int(known.sum()) >= FEWEST:
            done |= heads[name].calibrate(torch.from_numpy(predicted[name][:, 0])[known], target[known])
    if done:
        replace_weights(folder / "checkpoints" / "last.ckpt", module.state_dict())
