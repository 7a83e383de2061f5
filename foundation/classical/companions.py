"""What is mixed with a model's predictions: a forest, support vectors and a median, fitted to the same labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from datamodules.properties import Property
from foundation.classical.forest import Forest, fit_forest
from foundation.classical.support_vectors import SupportVectors, fit_support_vectors

Values = npt.NDArray[np.float64]


class Companions(NamedTuple):
    """Three that predict one number per crystal.

    Attributes:
        forest: Of randomised trees on descriptors.
        support_vectors: On the same descriptors.
        median: Of the labels, in physical units.
    """

    forest: Forest
    support_vectors: SupportVectors
    median: float

    def predict(self, features: pd.DataFrame, property: Property) -> Values:
        """[B, D] descriptors -> [3, B] what each says, in the space where labels are learned."""
        median = np.log10(self.median) if property.log else self.median
        return np.stack(
            [
                self.forest.predict(features),
                self.support_vectors.predict(features),
                np.full(len(features), median, dtype=np.float64),
            ]
        )

    def physical(self, features: pd.DataFrame, property: Property) -> Values:
        """[B, D] descriptors -> [3, B] in physical units."""
        learned = self.predict(features, property)
        return 10.0**learned if property.log else learned

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Every number in it by name, as a checkpoint can hold them."""
        return {
            **{f"forest_{name}": values for name, values in self.forest._asdict().items()},
            **{f"support_{name}": values for name, values in self.support_vectors._asdict().items()},
            "median": np.asarray(self.median),
        }

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Companions:
        """What ``arrays`` gave -> companions."""
        return cls(
            Forest(*(arrays[f"forest_{name}"] for name in Forest._fields)),
            SupportVectors(*(arrays[f"support_{name}"] for name in SupportVectors._fields)),
            float(arrays["median"]),
        )


def fit_companions(features: pd.DataFrame, labels: Values, property: Property, seed: int = 0) -> Companions:
    """Fit all three, to log10 of the labels where the property says so.

    Args:
        features: [K, D] descriptors.
        labels: [K] labels in physical units.
        property: What they are.
        seed: Seed of what is random in them.
    """
    goal = np.log10(labels) if property.log else labels
    return Companions(
        fit_forest(features, goal, seed), fit_support_vectors(features, goal, seed), float(np.median(labels))
    )
