"""Regression by support vectors (Drucker et al., 1997) as tensors: part of a checkpoint, and of an export.

It is smooth where a forest is made of steps: better for labels that follow the composition smoothly, such as elastic
moduli, worse where few descriptors decide, such as for band gaps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from torch import Tensor, nn

Values = npt.NDArray[np.float64]

# Of labels in units of their spread. Chosen, with the width of the kernel, by cross-validation within training labels
# of shear modulus, phonon peak, dielectric constant, piezoelectric modulus and band gap, 10, 100 and 800 of them.
SETTINGS = {"C": 10.0, "epsilon": 0.1}
_WIDTH = 0.1  # gamma times the number of descriptors
MOST = 20_000  # labels: what fitting costs grows with their square


class SupportVectors(nn.Module):
    """S support vectors of D descriptors.

    Args:
        vectors: S.
        descriptors: D.

    Attributes:
        mean: [D] of the descriptors.
        scale: [D] their spread; 1 where there is none.
        vectors: [S, D] scaled descriptors.
        coefficient: [S] how much each says, in the space where labels are learned.
        intercept: [] what is said far from all of them.
    """

    mean: Tensor
    scale: Tensor
    vectors: Tensor
    coefficient: Tensor
    intercept: Tensor

    def __init__(self, vectors: int, descriptors: int) -> None:
        super().__init__()
        shapes = {"mean": [descriptors], "scale": [descriptors], "vectors": [vectors, descriptors]}
        for name, shape in {**shapes, "coefficient": [vectors], "intercept": []}.items():
            self.register_buffer(name, torch.zeros(shape, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        """[B, D] descriptors -> [B], in the space where labels are learned."""
        scaled = (features - self.mean) / self.scale
        squares = scaled.square().sum(dim=1)[:, None] + self.vectors.square().sum(dim=1) - 2 * scaled @ self.vectors.T
        kernel = torch.exp(-_WIDTH / len(self.mean) * squares)
        return kernel @ self.coefficient + self.intercept


def fit_support_vectors(features: pd.DataFrame, goal: Values, seed: int = 0) -> SupportVectors:
    """Fit them.

    Args:
        features: [K, D] descriptors.
        goal: [K] labels, in the space where they are learned.
        seed: Seed of the choice where there are more than ``MOST`` labels.
    """
    table = features.to_numpy(dtype=np.float64)
    if len(goal) > MOST:
        chosen = np.sort(np.random.default_rng(seed).permutation(len(goal))[:MOST])
        table, goal = table[chosen], goal[chosen]
    scaler = StandardScaler().fit(table)
    centre, spread = np.median(goal), goal.std() or 1.0
    model = SVR(gamma=_WIDTH / table.shape[1], **SETTINGS).fit(scaler.transform(table), (goal - centre) / spread)
    made = SupportVectors(*model.support_vectors_.shape)
    found = {
        "mean": scaler.mean_,
        "scale": scaler.scale_,
        "vectors": model.support_vectors_,
        "coefficient": model.dual_coef_[0] * spread,
        "intercept": np.asarray(model.intercept_[0] * spread + centre),
    }
    made.load_state_dict({name: torch.from_numpy(values) for name, values in found.items()})
    return made
