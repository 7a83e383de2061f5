"""A forest of randomised trees (Geurts, Ernst & Wehenkel, 2006) as plain arrays, so that a checkpoint can hold it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.ensemble import ExtraTreesRegressor

Values = npt.NDArray[np.float64]

NUM_TREES = 100
SETTINGS = {"n_estimators": NUM_TREES, "max_features": 0.3, "min_samples_leaf": 1}


class Forest(NamedTuple):
    """T trees of at most M nodes; a node whose ``left`` is its own index is a leaf.

    Attributes:
        feature: [T, M] column that a node looks at.
        threshold: [T, M] values up to this go left.
        left: [T, M] node to go to.
        right: [T, M] node to go to.
        value: [T, M] what a leaf says, in the space where labels are learned.
    """

    feature: npt.NDArray[np.int64]
    threshold: Values
    left: npt.NDArray[np.int64]
    right: npt.NDArray[np.int64]
    value: Values

    def predict(self, features: pd.DataFrame) -> Values:
        """[B, D] descriptors -> [B], the mean over the trees, in the space where labels are learned."""
        table = features.to_numpy(dtype=np.float32)  # the precision in which scikit-learn compares
        tree = np.arange(len(self.feature))[:, None]
        node = np.zeros((len(self.feature), len(table)), dtype=np.int64)  # [T, B]
        row = np.arange(len(table))[None]
        while True:
            goes_left = table[row, self.feature[tree, node]] <= self.threshold[tree, node]
            following = np.where(goes_left, self.left[tree, node], self.right[tree, node])
            if (following == node).all():
                return np.asarray(self.value[tree, node].mean(axis=0), dtype=np.float64)
            node = following


def fit_forest(features: pd.DataFrame, goal: Values, seed: int = 0) -> Forest:
    """Fit a forest.

    Args:
        features: [K, D] descriptors.
        goal: [K] labels, in the space where they are learned.
        seed: Seed of what is random in the trees.
    """
    model = ExtraTreesRegressor(random_state=seed, **SETTINGS).fit(features, goal)
    trees = [estimator.tree_ for estimator in model.estimators_]
    size = max(tree.node_count for tree in trees)
    nodes = np.arange(size)
    columns: list[list[npt.NDArray[np.generic]]] = []
    for tree in trees:
        leaf = tree.children_left < 0
        own = nodes[: tree.node_count]
        columns.append(
            [
                np.where(leaf, 0, tree.feature),
                tree.threshold,
                np.where(leaf, own, tree.children_left),
                np.where(leaf, own, tree.children_right),
                tree.value[:, 0, 0],
            ]
        )
    padded = [np.stack([np.pad(column[i], (0, size - len(column[i]))) for column in columns]) for i in range(5)]
    feature, threshold, left, right, value = padded
    return Forest(
        feature.astype(np.int64),
        threshold.astype(np.float64),
        left.astype(np.int64),
        right.astype(np.int64),
        value.astype(np.float64),
    )
