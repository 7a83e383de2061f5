"""What is mixed with a model's predictions: a forest, support vectors and a median, fitted to the same labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor, nn

from datamodules.properties import Property
from foundation.classical.forest import Forest, fit_forest
from foundation.classical.support_vectors import SupportVectors, fit_support_vectors

Values = npt.NDArray[np.float64]

COUNT = 3


class Companions(nn.Module):
    """Three that predict one number per crystal, in the space where labels are learned.

    Args:
        forest: Of randomised trees on descriptors.
        support_vectors: On the same descriptors.
        median: Of the labels, in that space.
    """

    median: Tensor

    def __init__(self, forest: Forest, support_vectors: SupportVectors, median: float = 0.0) -> None:
        super().__init__()
        self.forest = forest
        self.support_vectors = support_vectors
        self.register_buffer("median", torch.tensor(median, dtype=torch.float64))

    @classmethod
    def of_sizes(cls, sizes: dict[str, int]) -> Companions:
        """Empty ones, for what ``state_dict`` gives of those that have these ``sizes``."""
        return cls(
            Forest(sizes["trees"], sizes["nodes"], sizes["depth"]),
            SupportVectors(sizes["vectors"], sizes["descriptors"]),
        )

    @property
    def sizes(self) -> dict[str, int]:
        """How large each part is, by name."""
        (trees, nodes), (vectors, descriptors) = self.forest.feature.shape, self.support_vectors.vectors.shape
        return {
            "trees": trees,
            "nodes": nodes,
            "depth": self.forest.depth,
            "vectors": vectors,
            "descriptors": descriptors,
        }

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] descriptors -> [3, B] what each says."""
        return torch.stack([self.forest(features), self.support_vectors(features), self.median.expand(len(features))])

    def physical(self, features: pd.DataFrame, property: Property) -> Values:
        """[B, D] descriptors -> [3, B] in physical units."""
        learned: Values = self(torch.tensor(features.to_numpy(dtype=np.float64))).numpy()
        return 10.0**learned if property.log else learned


def fit_companions(features: pd.DataFrame, labels: Values, property: Property, seed: int = 0) -> Companions:
    """Fit all three, to log10 of the labels where the property says so.

    Args:
        features: [K, D] descriptors.
        labels: [K] labels in physical units.
        property: What they are.
        seed: Seed of what is random in them.
    """
    goal = np.log10(labels) if property.log else labels
    median = float(np.median(labels))
    return Companions(
        fit_forest(features, goal, seed),
        fit_support_vectors(features, goal, seed),
        float(np.log10(median)) if property.log else median,
    )
