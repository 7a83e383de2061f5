"""How the losses of several properties are weighed against each other."""

from __future__ import annotations

import abc
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from foundation.training.shards import whole


class TaskWeighting(nn.Module, abc.ABC):
    """Combines per-property sums of elementwise losses into one sum.

    The caller divides by the number of labels, over all processes and accumulated batches. Working with sums
    keeps that division exact.
    """

    @abc.abstractmethod
    def forward(self, sums: Tensor, counts: Tensor) -> Tensor:
        """[P] sums of losses and [P] numbers of labels behind them -> the sum to minimise."""

    @abc.abstractmethod
    def weights(self) -> Tensor:
        """[P] effective weight of each property."""


class FixedWeights(TaskWeighting):
    """Constant weights; by default every label counts the same.

    Args:
        names: The P properties.
        weights: Weight of some of them; the others weigh 1.
    """

    fixed: Tensor

    def __init__(self, names: Sequence[str], weights: dict[str, float] | None = None) -> None:
        super().__init__()
        weights = weights or {}
        unknown = sorted(set(weights) - set(names))
        if unknown:
            raise InputError(f"task_weights: no head for {', '.join(unknown)}; heads are {', '.join(names)}")
        self.register_buffer("fixed", torch.tensor([weights.get(name, 1.0) for name in names]), persistent=False)

    def forward(self, sums: Tensor, counts: Tensor) -> Tensor:
        """[P], [P] -> weighted sum."""
        return (self.fixed * sums).sum()

    def weights(self) -> Tensor:
        """[P]."""
        return self.fixed


class UncertaintyWeights(TaskWeighting):
    """Weights learned as homoscedastic uncertainties (Kendall, Gal & Cipolla, CVPR 2018).

    Args:
        names: The P properties.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.log_variance = nn.Parameter(torch.zeros(len(names)))

    def forward(self, sums: Tensor, counts: Tensor) -> Tensor:
        """[P], [P] -> sum of exp(-s) loss + s, over labels."""
        return (torch.exp(-self.log_variance) * sums + self.log_variance * counts).sum()

    def weights(self) -> Tensor:
        """[P]."""
        return torch.exp(-whole(self.log_variance.detach()))
