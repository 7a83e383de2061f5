"""Scalar properties: intensive or extensive, linear or over decades, with or without element references."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.properties import Property
from heads.base import NUM_ELEMENTS, Head, invariant_slice
from heads.pooling import MeanAndAttention, composition, crystal_mean, crystal_sum


class ScalarHead(Head):
    """One number per crystal.

    Args:
        irreps_in: Irreps of the atom features.
        property: What is predicted.
        aggregation: "mean" for an intensive property, beside which an attention over atoms sees the extremes
            (the highest phonon frequency hangs on the lightest atom); "sum" for an extensive one, which grows
            with the cell.
        element_reference: Subtract a per-element reference fitted to the training labels by ridge regression
            on the composition, so that the network learns only what composition does not explain.
        log: Learn log10 of the value; None takes the property's own setting.
        hidden: Channels of a hidden layer; 0 for a linear head.
        loss: Elementwise loss in scaled space.
    """

    mean: Tensor
    scale: Tensor
    reference: Tensor

    def __init__(
        self,
        irreps_in: str,
        property: Property,
        aggregation: Literal["mean", "sum"] = "mean",
        element_reference: bool = False,
        log: bool | None = None,
        hidden: int = 0,
        loss: Literal["l1", "huber", "mse"] = "l1",
    ) -> None:
        super().__init__(irreps_in, property)
        if property.irreps != "0e" or property.level != "crystal":
            raise InputError(f"property {property.name}: a ScalarHead predicts one scalar per crystal")
        self.log = property.log if log is None else log
        if self.log and aggregation == "sum":
            raise InputError(f"head {property.name}: log: true needs aggregation: mean")
        self.aggregation = aggregation
        self.element_reference = element_reference
        self.loss_name = loss
        self.scalars = invariant_slice(self.irreps_in)
        channels = self.scalars.stop - self.scalars.start
        if aggregation == "mean":
            self.pool: nn.Module = MeanAndAttention(channels)
            channels *= 2
        layers: list[nn.Module] = [nn.Linear(channels, hidden), nn.SiLU()] if hidden else []
        self.network = nn.Sequential(*layers, nn.Linear(hidden or channels, 1))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("reference", torch.zeros(NUM_ELEMENTS + 1))

    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """[N, irreps_in.dim] atom features -> [B] scaled prediction."""
        scalars = features[:, self.scalars]
        if self.aggregation == "sum":
            return crystal_sum(self.network(scalars)[:, 0], batch)
        out: Tensor = self.network(self.pool(scalars, batch))[:, 0]
        return out

    def predict(self, scaled: Tensor, batch: Any) -> Tensor:
        """[B] scaled prediction -> [B] in physical units."""
        value = scaled * self.scale + self._offset(batch)
        return torch.pow(10.0, value) if self.log else value

    def loss(self, scaled: Tensor, target: Tensor, batch: Any) -> Tensor:
        """[B] scaled prediction, [B] physical target -> [B]."""
        goal = (self.transformed(target) - self._offset(batch)) / self.scale
        if self.aggregation == "sum":  # a cell of twice the size must not count twice as much
            scaled, goal = scaled / batch.num_atoms, goal / batch.num_atoms
        if self.loss_name == "l1":
            return (scaled - goal).abs()
        if self.loss_name == "huber":
            return nn.functional.smooth_l1_loss(scaled, goal, beta=0.1, reduction="none")
        return (scaled - goal).square()

    def fit_scaler(self, target: Tensor, batch: Any) -> None:
        """Set mean, scale and element references from [M] physical training labels.

        Raises:
            InputError: If log is asked for and a label is not positive.
        """
        if self.log and not bool((target > 0).all()):
            raise InputError(
                f"property {self.property.name}: log needs positive labels, {int((target <= 0).sum())} are not; "
                "set log: false or leave those labels out"
            )
        value = self.transformed(target.double())
        if self.aggregation == "sum":
            value = value / batch.num_atoms
        if self.element_reference:
            shares = composition(batch)
            reference = _ridge(shares, value)
            self.reference.copy_(reference)
            value = value - shares @ reference
        self.mean.copy_(value.mean())
        spread = value.std(unbiased=False)
        self.scale.copy_(spread if spread > 0 else torch.ones_like(spread))

    def transformed(self, target: Tensor) -> Tensor:
        """Physical labels in the space where they are learned."""
        return torch.log10(target) if self.log else target

    def _offset(self, batch: Any) -> Tensor:
        """[B], or 0-dimensional: what is added to the scaled prediction, per crystal."""
        per_atom = self.mean
        if self.element_reference:
            per_atom = per_atom + crystal_mean(self.reference[batch.z], batch)
        return per_atom * batch.num_atoms if self.aggregation == "sum" else per_atom


def _ridge(shares: Tensor, value: Tensor, strength: float = 1e-2) -> Tensor:
    """Per-element references; an element without labels takes the mean."""
    center = value.mean()
    gram = shares.T @ shares + strength * torch.eye(shares.shape[1], dtype=shares.dtype)
    reference: Tensor = torch.linalg.solve(gram, shares.T @ (value - center)) + center
    return reference
