"""Metrics of predictions with more than one number, as averages over labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class Averaged(Metric):
    """The mean over labels of what a function makes of each prediction and target.

    Args:
        of: [K, ...] predictions and targets -> [K].
        sync: Arguments of every metric.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, of: Callable[[Tensor, Tensor], Tensor], **sync: Any) -> None:
        super().__init__(**sync)
        self.of = of
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Take in [K, ...] predictions and targets."""
        self.total += self.of(predicted, target).double().sum()
        self.count += len(target)

    def compute(self) -> Tensor:
        """The mean."""
        return self.total / self.count


def component_mae(predicted: Tensor, target: Tensor) -> Tensor:
    """[K, ...] -> [K] mean absolute error of the components."""
    return (predicted - target).abs().flatten(1).mean(dim=1)


def frobenius(predicted: Tensor, target: Tensor) -> Tensor:
    """[K, ...] -> [K] the norm of the error."""
    size: Tensor = torch.linalg.vector_norm((predicted - target).flatten(1), dim=1)
    return size


def aligned(predicted: Tensor, target: Tensor) -> Tensor:
    """[K, ...] -> the predictions under the sign that is nearer to the target."""
    nearer = frobenius(predicted, target) <= frobenius(-predicted, target)
    return torch.where(nearer.view(-1, *[1] * (target.dim() - 1)), predicted, -predicted)


class UpToSign:
    """Another measure, where the sign of the target is not known.

    Args:
        of: The measure.
    """

    def __init__(self, of: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.of = of

    def __call__(self, predicted: Tensor, target: Tensor) -> Tensor:
        return self.of(aligned(predicted, target), target)
