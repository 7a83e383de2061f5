"""Functions of distance: the radial basis and the envelope that makes a neighbour fade out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GaussianBasis(nn.Module):
    """Gaussians on a regular grid of distances, as in SchNet (Schuett et al., 2017).

    Args:
        size: Number of Gaussians R.
        start: Distance of the first centre in Angstrom.
        stop: Distance of the last centre in Angstrom.
    """

    centers: Tensor

    def __init__(self, size: int, start: float = 0.5, stop: float = 8.0) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(start, stop, size))
        self.width = (stop - start) / (size - 1)

    def forward(self, distance: Tensor) -> Tensor:
        """[E] distances in Angstrom -> [E, R]."""
        return torch.exp(-0.5 * ((distance[:, None] - self.centers) / self.width) ** 2)

    def extra_repr(self) -> str:
        return f"size={len(self.centers)}, width={self.width:.3f}"


def envelope(distance: Tensor, cutoff: Tensor, width: float) -> Tensor:
    """Weight of an edge: 1 up to ``cutoff - width``, then smoothly to 0 at the cutoff.

    Args:
        distance: [E] Angstrom.
        cutoff: [E] cutoff of the receiving atom in Angstrom.
        width: Angstrom over which the weight falls.

    Returns:
        [E] weights, once continuously differentiable.
    """
    inside = ((cutoff - distance) / width).clamp(0.0, 1.0)
    return inside * inside * (3.0 - 2.0 * inside)
