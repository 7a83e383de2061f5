"""What every head is: from the features of atoms to one property, its scale and its loss."""

from __future__ import annotations

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from e3nn import o3
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, R2Score

from datamodules.properties import Property

NUM_ELEMENTS = 103  # H to Lr, as in the encoder; entry 0 of a table stands for no element


class Head(nn.Module, abc.ABC):
    """One property on top of the shared encoder.

    A head predicts in a scaled space where targets are of order one, and owns the way from there to physical
    units. Its statistics come from training labels only, live in buffers, and therefore travel with the
    weights and never change on load.

    Args:
        irreps_in: Irreps of the atom features, in e3nn's layout.
        property: What is predicted.

    Subclasses implement ``forward``, ``predict``, ``fit_scaler`` and ``loss``; those of labels with more than one
    number are ``heads.shaped.ShapedHead``.
    """

    is_classifier: ClassVar[bool] = False
    needs_edges: bool = False  # whether forward looks at the neighbours of atoms

    @property
    def is_single(self) -> bool:
        """Whether a prediction is one number per crystal."""
        return True

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

    def target(self, column: Tensor, batch: Any) -> Tensor:
        """The labels of this property in a batch.

        Args:
            column: [B] its column in the table of labels.
            batch: The batch.
        """
        return column

    def masked_loss(self, scaled: Tensor, target: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """[B] losses, 0 where there is no label to learn from, and [B] where there is one.

        Args:
            scaled: What ``forward`` gave.
            target: What ``target`` gave, NaN where a label is missing.
            batch: The batch.
        """
        known = ~torch.isnan(target)
        # 1 is a valid label of every kind of single head; 0 * NaN would be NaN.
        losses = self.loss(scaled, torch.where(known, target, torch.ones_like(target)), batch)
        return torch.where(known, losses, torch.zeros_like(losses)), known

    def reachable(self, target: Tensor, batch: Any) -> Tensor:
        """[B] which of the labels of B crystals, all of them there, a prediction can be equal to."""
        return torch.ones(len(batch.num_atoms), dtype=torch.bool, device=target.device)

    def comparable(self, predicted: Tensor, target: Tensor, batch: Any) -> Tensor:
        """The targets as predictions, both in physical units, are to be compared with them, or other predictions alike.

        Where the sign is arbitrary, that is the one under which they are nearer.
        """
        return target

    def calibrate(self, predicted: Tensor, target: Tensor) -> bool:
        """Adjust what is predicted to [M] labels that did not train; returns whether anything was done."""
        return False

    def metrics(self, **sync: Any) -> Mapping[str, Metric]:
        """Metrics of [K, ...] physical predictions and targets, without NaN.

        Args:
            sync: Arguments of every metric.
        """
        return {
            "mae": MeanAbsoluteError(**sync),
            "rmse": MeanSquaredError(squared=False, **sync),
            "r2": R2Score(**sync),
        }


def invariant_slice(irreps: o3.Irreps) -> slice:
    """Where the scalars stand in features of these irreps.

    Raises:
        ValueError: If the irreps hold no scalars.
    """
    for (_, ir), place in zip(irreps, irreps.slices(), strict=True):
        if ir == o3.Irrep("0e"):
            return slice(place.start, place.stop)
    raise ValueError(f"irreps {irreps} hold no scalars")
