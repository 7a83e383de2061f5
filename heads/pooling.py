"""From atoms to crystals: sums, means and an attention that sees the extremes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from heads.base import NUM_ELEMENTS

# Logits beyond this are clipped: the exponential of a larger one would overflow a sum in single precision.
MAX_LOGIT = 10.0


def crystal_sum(values: Tensor, batch: Any) -> Tensor:
    """Sum over the atoms of each crystal, in single precision at least: [N, ...] -> [B, ...]."""
    values = _at_least_single(values)
    size = (len(batch.num_atoms), *values.shape[1:])
    return torch.zeros(size, dtype=values.dtype, device=values.device).index_add(0, batch.batch, values)


def crystal_mean(values: Tensor, batch: Any) -> Tensor:
    """Mean over the atoms of each crystal: [N, ...] -> [B, ...]."""
    num_atoms: Tensor = batch.num_atoms
    sums = crystal_sum(values, batch)
    return sums / num_atoms.view(-1, *[1] * (sums.dim() - 1)).to(sums.dtype)


def composition(batch: Any) -> Tensor:
    """Share of every element in each crystal: [B, NUM_ELEMENTS + 1] in double precision, column z for number z."""
    table = torch.zeros(len(batch.num_atoms), NUM_ELEMENTS + 1, dtype=torch.float64, device=batch.z.device)
    share = 1.0 / batch.num_atoms[batch.batch].double()
    return table.index_put((batch.batch, batch.z), share, accumulate=True)


def _at_least_single(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


class MeanAndAttention(nn.Module):
    """The mean over atoms beside a mean weighted by each channel's own attention.

    Both are intensive: the same for a crystal and its supercell.

    Args:
        channels: Scalars per atom C; the result has 2 C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.logits = nn.Linear(channels, channels)

    def forward(self, values: Tensor, batch: Any) -> Tensor:
        """[N, C] -> [B, 2 C]."""
        weights = torch.exp(_at_least_single(self.logits(values)).clamp(-MAX_LOGIT, MAX_LOGIT))
        attended = crystal_sum(values * weights, batch) / crystal_sum(weights, batch)
        return torch.cat([crystal_mean(values, batch), attended], dim=1)
