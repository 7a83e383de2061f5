"""Between e3nn's irreps and the encoder's own channel-last features."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor


def split_channels(irreps: o3.Irreps) -> list[int]:
    """Channels per degree of irreps that hold each degree 0, 1, ... once, in order, with natural parity.

    Raises:
        ValueError: If the irreps are anything else.
    """
    for degree, (_, ir) in enumerate(irreps):
        if ir.l != degree or ir.p != (-1) ** degree:
            raise ValueError(f"irreps {irreps}: expected one term per degree in order, such as 64x0e+32x1o+16x2e")
    return [mul for mul, _ in irreps]


def to_e3nn(features: list[Tensor]) -> Tensor:
    """One [N, 2l+1, C_l] per degree ([N, C_0] for scalars) -> [N, irreps.dim] in e3nn's layout."""
    return torch.cat([features[0], *(feature.transpose(1, 2).flatten(1) for feature in features[1:])], dim=1)
