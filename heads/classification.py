"""Yes-or-no properties, such as metal or not."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.properties import Property
from heads.base import Head, invariant_slice
from heads.pooling import MeanAndAttention


class ClassificationHead(Head):
    """The probability that a crystal is of class 1.

    Args:
        irreps_in: Irreps of the atom features.
        property: What is predicted; its labels are 0 and 1.
        hidden: Channels of a hidden layer; 0 for a linear head.
    """

    is_classifier: ClassVar[bool] = True
    prior: Tensor

    def __init__(self, irreps_in: str, property: Property, hidden: int = 0) -> None:
        super().__init__(irreps_in, property)
        self.scalars = invariant_slice(self.irreps_in)
        channels = self.scalars.stop - self.scalars.start
        self.pool = MeanAndAttention(channels)
        channels *= 2
        layers: list[nn.Module] = [nn.Linear(channels, hidden), nn.SiLU()] if hidden else []
        self.network = nn.Sequential(*layers, nn.Linear(hidden or channels, 1))
        self.register_buffer("prior", torch.zeros(()))

    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """[N, irreps_in.dim] atom features -> [B] log-odds beside those of the training labels."""
        out: Tensor = self.network(self.pool(features[:, self.scalars], batch))[:, 0]
        return out

    def predict(self, scaled: Tensor, batch: Any) -> Tensor:
        """[B] -> [B] probability of class 1."""
        return torch.sigmoid(scaled + self.prior)

    def loss(self, scaled: Tensor, target: Tensor, batch: Any) -> Tensor:
        """[B], [B] labels 0 or 1 -> [B] cross entropy."""
        return nn.functional.binary_cross_entropy_with_logits(scaled + self.prior, target, reduction="none")

    def fit_scaler(self, target: Tensor, batch: Any) -> None:
        """Set the log-odds of class 1 among [M] training labels.

        Raises:
            InputError: If a label is neither 0 nor 1.
        """
        if not bool(((target == 0) | (target == 1)).all()):
            raise InputError(f"property {self.property.name}: a ClassificationHead needs labels 0 and 1")
        # One virtual label of each class keeps the odds finite.
        share = (target.double().sum() + 1) / (len(target) + 2)
        self.prior.copy_(torch.log(share / (1 - share)))
