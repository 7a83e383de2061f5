"""What every head is: from the features of atoms to one property, its scale and its loss."""

from __future__ import annotations

import abc
from typing import Any, ClassVar

from e3nn import o3
from torch import Tensor, nn

from datamodules.properties import Property


class Head(nn.Module, abc.ABC):
    """One property on top of the shared encoder.

    A head predicts in a scaled space where targets are of order one, and owns the way from there to physical
    units. Its statistics come from training labels only, live in buffers, and therefore travel with the
    weights and never change on load.

    Args:
        irreps_in: Irreps of the atom features, in e3nn's layout.
        property: What is predicted.

    Subclasses implement ``forward``, ``predict``, ``fit_scaler`` and ``loss``.
    """

    is_classifier: ClassVar[bool] = False

    def __init__(self, irreps_in: str, property: Property) -> None:
        super().__init__()
        self.irreps_in = o3.Irreps(irreps_in)
        self.irreps_out = o3.Irreps(property.irreps)
        self.property = property

    @abc.abstractmethod
    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """[N, irreps_in.dim] atom features of B crystals -> [B] scaled prediction."""

    @abc.abstractmethod
    def predict(self, scaled: Tensor, batch: Any) -> Tensor:
        """[B] scaled prediction -> [B] in physical units."""

    @abc.abstractmethod
    def loss(self, scaled: Tensor, target: Tensor, batch: Any) -> Tensor:
        """[B] scaled prediction and [B] physical target without NaN -> [B] elementwise loss."""

    @abc.abstractmethod
    def fit_scaler(self, target: Tensor, batch: Any) -> None:
        """Set the scale from all training labels, [M] physical targets of the M crystals of ``batch``."""


def invariant_slice(irreps: o3.Irreps) -> slice:
    """Where the scalars stand in features of these irreps.

    Raises:
        ValueError: If the irreps hold no scalars.
    """
    for (_, ir), place in zip(irreps, irreps.slices(), strict=True):
        if ir == o3.Irrep("0e"):
            return slice(place.start, place.stop)
    raise ValueError(f"irreps {irreps} hold no scalars")
