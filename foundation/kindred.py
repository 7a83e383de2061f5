"""A new head that begins as a pretrained one, where what that one says of the training crystals goes with their labels.

An experimental band gap and a computed one differ by little more than a factor: with ten labels nothing beats knowing
so. Nothing is asked of names or units; labels that are left out one by one decide.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from scipy.stats import pearsonr
from torch import nn

from datamodules.datamodule import CrystalDataModule
from foundation.checkpoint import Checkpoint
from foundation.inference import Ensemble
from foundation.training.module import MultiTaskModule
from foundation.transferability import median_mae
from heads import ScalarHead

Array = npt.NDArray[np.float64]

# A straight line in what the old head says must leave this much of the median's error at most, and the correlation
# be this improbable. Of ten labels that have little to do with three heads one draw in twenty meets both, of a hundred
# none; of ten experimental band gaps three in five, of a hundred all (LOG.md, 2026-11-26).
MOST_ERROR = 0.7
MOST_CHANCE = 0.01
MIN_LABELS = 5


def begin_like_kindred(module: MultiTaskModule, name: str, checkpoint: Checkpoint, data: CrystalDataModule) -> str:
    """Let the new head of a property begin as a straight line in what a pretrained head says.

    Args:
        module: The module; its head of ``name`` is new, its scale set.
        name: The property.
        checkpoint: Where the encoder comes from, with its heads.
        data: The data; only training labels are looked at.

    Returns:
        What the head begins as, to be added to a line; "" where no pretrained head tells enough.
    """
    head = dict(module.named_heads())[name]
    rows, labels = data.training_labels(name)
    if not isinstance(head, ScalarHead) or len(rows) < MIN_LABELS:
        return ""
    with isolate_rng():  # whether or not one is found, what is random goes on as it would have
        source = checkpoint.build()
    candidates = {
        other: old for other, old in source.named_heads() if isinstance(old, ScalarHead) and _alike(old, head)
    }
    if not candidates:
        return ""
    goal = ((head.transformed(labels) - head.mean) / head.scale).numpy()
    said = Ensemble([source]).predict_graphs(data.graphs, rows)
    source.cpu()  # back from where it predicted, to where the labels are
    worst = median_mae(goal)
    best, kindred = MOST_ERROR * worst, None
    for other, old in candidates.items():
        raw = ((old.transformed(torch.from_numpy(said[other][:, 0])) - old.mean) / old.scale).numpy()
        error = leave_one_out_of_line(raw, goal)
        if error < best and pearsonr(raw, goal).pvalue < MOST_CHANCE:
            best, kindred = error, (other, old, np.polyfit(raw, goal, 1))
    if kindred is None:
        return ""
    other, old, (slope, intercept) = kindred
    head.pool.load_state_dict(old.pool.state_dict())
    head.network.load_state_dict(old.network.state_dict())
    last = head.network[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(slope)
        last.bias.mul_(slope).add_(intercept)
    return f", which begins as that of {other}: a line in what it says has {best / worst:.0%} of the median's error"


def leave_one_out_of_line(x: Array, y: Array) -> float:
    """Mean absolute error of each of [K] values by a straight line through all others; infinite where there is none."""
    x = x - x.mean()
    if not (x != 0).any():
        return np.inf
    leverage = 1 / len(x) + x**2 / (x**2).sum()
    residual = y - y.mean() - x * (x @ y) / (x @ x)
    with np.errstate(divide="ignore", invalid="ignore"):  # a value that alone carries the slope
        error = float(np.abs(residual / (1 - leverage)).mean())
    return error if np.isfinite(error) else np.inf


def _alike(old: ScalarHead, new: ScalarHead) -> bool:
    """Whether the weights of the old head, its last ones times a number and plus one, can stand in the new one."""
    return all(head.aggregation == "mean" and not head.element_reference for head in (old, new)) and [
        value.shape for value in old.parameters()
    ] == [value.shape for value in new.parameters()]
