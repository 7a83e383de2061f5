"""What the heads of Cartesian tensors have in common, be it one of the crystal or one of each atom."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from heads.cartesian import CartesianTensor
from heads.equivariant import IrrepsReadout
from heads.shaped import ShapedHead


class CartesianHead(ShapedHead):
    """Predicts the irreps of Cartesian tensors.

    Subclasses set:
        tensor: The tensor, with the symmetry of its indices.
        readout: From features to its irreps, in scaled space.
    """

    tensor: CartesianTensor
    readout: IrrepsReadout

    @property
    def shape(self) -> tuple[int, ...]:
        """[3] * rank; nothing for a scalar."""
        return self.tensor.shape

    @property
    def formula(self) -> str:
        """Symmetry of the indices."""
        return self.tensor.formula

    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """[N, irreps_in.dim] atom features -> [B, D] scaled irreps, [N, D] of each atom."""
        out: Tensor = self.readout(features, batch)
        return out
