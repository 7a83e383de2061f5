"""Gradient-boosted trees on descriptors, and the median: what a neural model has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

from datamodules.errors import InputError
from datamodules.properties import Property

Values = npt.NDArray[np.float64]

# Small trees, each split among a random third of the descriptors: chosen by cross-validation within training labels
# of shear modulus, phonon peak and dielectric constant, 100 and 800 of them. No early stopping: all labels fit.
SETTINGS: dict[str, Any] = {
    "learning_rate": 0.05,
    "max_iter": 200,
    "max_leaf_nodes": 16,
    "max_features": 0.3,
    "max_bins": 64,
    "early_stopping": False,
}
_LEAF = 4  # labels in a leaf, fewer where there are fewer than eight times as many labels


@dataclass(frozen=True)
class Trees:
    """Fitted trees of one property.

    Attributes:
        model: scikit-learn's estimator.
        property: What is predicted.
    """

    model: Any
    property: Property

    def predict(self, features: pd.DataFrame) -> Values:
        """[M, D] descriptors -> [M] in physical units; of a class property, the probability of class 1."""
        if self.property.kind == "class":
            return np.asarray(self.model.predict_proba(features)[:, 1], dtype=np.float64)
        predicted = np.asarray(self.model.predict(features), dtype=np.float64)
        return np.power(10.0, predicted) if self.property.log else predicted


def fit_trees(features: pd.DataFrame, labels: Values, property: Property, seed: int = 0) -> Trees:
    """Fit gradient-boosted trees, with absolute error as the loss; log10 of the labels where the property says so.

    Args:
        features: [K, D] descriptors, as `descriptors.describe` makes them.
        labels: [K] labels in physical units, none missing; 0 or 1 of a class property.
        property: What they are.
        seed: Seed of the descriptors that each split chooses among.

    Raises:
        InputError: If the labels hold one distinct value only, or are not what the property allows.
    """
    if len(np.unique(labels)) < 2:
        raise InputError(
            f"property {property.name}: trees need labels of two distinct values at least, "
            f"these {len(labels)} hold {len(np.unique(labels))}"
        )
    settings = SETTINGS | {"min_samples_leaf": min(_LEAF, max(1, len(labels) // 8)), "random_state": seed}
    if property.kind == "class":
        if not np.isin(labels, (0.0, 1.0)).all():
            raise InputError(f"property {property.name}: a class needs labels 0 and 1")
        return Trees(HistGradientBoostingClassifier(**settings).fit(features, labels.astype(np.int64)), property)
    if property.log and not (labels > 0).all():
        raise InputError(f"property {property.name}: log needs positive labels, {int((labels <= 0).sum())} are not")
    goal = np.log10(labels) if property.log else labels
    return Trees(HistGradientBoostingRegressor(loss="absolute_error", **settings).fit(features, goal), property)


def median_prediction(labels: Values, count: int) -> Values:
    """[K] labels -> [count] times their median."""
    return np.full(count, np.median(labels))
