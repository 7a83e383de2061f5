"""Products of equivariant features, unrolled at build time from e3nn's own Clebsch-Gordan tables.

Features are channel-last, ``[N, 2l+1, C]``, one tensor per degree l, all of natural parity (-1)^l. Unrolled,
a product is a handful of multiply-adds on contiguous rows of channels, without the sparse contraction that
a general tensor product pays for.
"""

from __future__ import annotations

import math

import torch
from e3nn import o3
from torch import Tensor


def natural_table(l1: int, l2: int, l3: int) -> Tensor:
    """e3nn's Clebsch-Gordan table of a product, component-normalised.

    Args:
        l1: Degree of the first feature.
        l2: Degree of the second feature.
        l3: Degree of the result; l1 + l2 + l3 must be even, so that natural parity stays natural.

    Returns:
        [2 l1 + 1, 2 l2 + 1, 2 l3 + 1] float64.

    Raises:
        ValueError: If there is no such product.
    """
    if (l1 + l2 + l3) % 2 or not abs(l1 - l2) <= l3 <= l1 + l2:
        raise ValueError(f"no product of natural parity from {l1} x {l2} to {l3}")
    table: Tensor = o3.wigner_3j(l1, l2, l3, dtype=torch.float64) * math.sqrt(2 * l3 + 1)
    return table


class ChannelwiseProduct:
    """Product of two features of degrees l1 and l2 to degree l3, channel by channel.

    Equal to e3nn's ``TensorProduct`` with ``"uuu"`` paths and component normalisation.

    Args:
        l1: Degree of the first feature.
        l2: Degree of the second feature.
        l3: Degree of the result, as ``natural_table`` takes them.
    """

    def __init__(self, l1: int, l2: int, l3: int) -> None:
        self.degrees = (l1, l2, l3)
        table = natural_table(l1, l2, l3)
        self._terms: list[list[tuple[int, int, float]]] = [
            [(int(i), int(j), float(table[i, j, k])) for i, j in table[:, :, k].abs().gt(1e-10).nonzero()]
            for k in range(2 * l3 + 1)
        ]

    def __call__(self, first: Tensor, second: Tensor) -> Tensor:
        """[N, 2 l1 + 1, C], [N, 2 l2 + 1, C] -> [N, 2 l3 + 1, C]."""
        return torch.stack(
            [sum(weight * first[:, i] * second[:, j] for i, j, weight in terms) for terms in self._terms],  # type: ignore[misc]
            dim=1,
        )

    def __repr__(self) -> str:
        return "{} x {} -> {}".format(*self.degrees)


def squared_norm(feature: Tensor) -> Tensor:
    """[N, 2l+1, C] -> [N, C], the invariant of one feature."""
    return (feature * feature).sum(dim=1)


def inner(first: Tensor, second: Tensor) -> Tensor:
    """[N, 2l+1, C], [N, 2l+1, C] -> [N, C], the invariant of two features."""
    return (first * second).sum(dim=1)


def bounded(feature: Tensor) -> Tensor:
    """Scale a feature down where it is large, so that products of products cannot run away.

    Small features stay as they are: by symmetry many sites have none of a degree, and a norm that divides by
    the size would blow their rounding errors up to order one.

    Args:
        feature: [N, 2l+1, C].

    Returns:
        [N, 2l+1, C] with a root mean square below 1 over components and channels.
    """
    return feature * torch.rsqrt(1.0 + feature.square().mean(dim=(1, 2), keepdim=True))
