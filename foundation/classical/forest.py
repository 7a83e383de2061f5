"""A forest of randomised trees (Geurts, Ernst & Wehenkel, 2006) as tensors: part of a checkpoint, and of an export."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.ensemble import ExtraTreesRegressor
from torch import Tensor, nn

Values = npt.NDArray[np.float64]

NUM_TREES = 100
SETTINGS = {"n_estimators": NUM_TREES, "max_features": 0.3, "min_samples_leaf": 1}


class Forest(nn.Module):
    """T trees of at most M nodes; a node whose ``left`` is its own index is a leaf.

    Args:
        trees: T.
        nodes: M.
        depth: Steps from a root to the farthest leaf.

    Attributes:
        feature: [T, M] column that a node looks at.
        threshold: [T, M] values up to this go left.
        left: [T, M] node to go to.
        right: [T, M] node to go to.
        value: [T, M] what a leaf says, in the space where labels are learned.
    """

    feature: Tensor
    threshold: Tensor
    left: Tensor
    right: Tensor
    value: Tensor

    def __init__(self, trees: int, nodes: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(trees, nodes, dtype=torch.int64))
        for name in ("threshold", "value"):
            self.register_buffer(name, torch.zeros(trees, nodes, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] descriptors -> [B], the mean over the trees, in the space where labels are learned."""
        table = features.float().T  # the precision in which scikit-learn compares
        node = self.feature.new_zeros(len(self.feature), len(features))  # [T, B]
        for _ in range(self.depth):
            goes_left = table.gather(0, self.feature.gather(1, node)) <= self.threshold.gather(1, node)
            node = torch.where(goes_left, self.left.gather(1, node), self.right.gather(1, node))
        return self.value.gather(1, node).mean(dim=0)


def fit_forest(features: pd.DataFrame, goal: Values, seed: int = 0) -> Forest:
    """Fit a forest.

    Args:
        features: [K, D] descriptors.
        goal: [K] labels, in the space where they are learned.
        seed: Seed of what is random in the trees.
    """
    model = ExtraTreesRegressor(random_state=seed, **SETTINGS).fit(features, goal)
    trees = [estimator.tree_ for estimator in model.estimators_]
    made = Forest(len(trees), max(tree.node_count for tree in trees), max(tree.max_depth for tree in trees))
    for number, tree in enumerate(trees):
        leaf = tree.children_left < 0
        own = np.arange(tree.node_count)
        columns = {
            "feature": np.where(leaf, 0, tree.feature),
            "threshold": tree.threshold,
            "left": np.where(leaf, own, tree.children_left),
            "right": np.where(leaf, own, tree.children_right),
            "value": tree.value[:, 0, 0],
        }
        for name, column in columns.items():
            getattr(made, name)[number, : len(own)] = torch.from_numpy(column)
    return made
