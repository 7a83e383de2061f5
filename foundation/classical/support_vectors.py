"""Regression by support vectors (Drucker et al., 1997) as plain arrays, so that a checkpoint can hold it.

It is smooth where a forest is made of steps: better for labels that follow the composition smoothly, such as elastic
moduli, worse where few descriptors decide, such as for band gaps.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR

Values = npt.NDArray[np.float64]

# Of labels in units of their spread. Chosen, with the width of the kernel, by cross-validation within training labels
# of shear modulus, phonon peak, dielectric constant, piezoelectric modulus and band gap, 10, 100 and 800 of them.
SETTINGS = {"C": 10.0, "epsilon": 0.1}
_WIDTH = 0.1  # gamma times the number of descriptors
MOST = 20_000  # labels: what fitting costs grows with their square


class SupportVectors(NamedTuple):
    """S support vectors of D descriptors.

    Attributes:
        mean: [D] of the descriptors.
        scale: [D] their spread; 1 where there is none.
        vectors: [S, D] scaled descriptors.
        coefficient: [S] how much each says, in the space where labels are learned.
        intercept: [] what is said far from all of them.
    """

    mean: Values
    scale: Values
    vectors: Values
    coefficient: Values
    intercept: Values

    def predict(self, features: pd.DataFrame) -> Values:
        """[B, D] descriptors -> [B], in the space where labels are learned."""
        scaled = (features.to_numpy(dtype=np.float64) - self.mean) / self.scale
        squares = (scaled**2).sum(axis=1)[:, None] + (self.vectors**2).sum(axis=1) - 2 * scaled @ self.vectors.T
        kernel = np.exp(-_WIDTH / len(self.mean) * squares)
        return np.asarray(kernel @ self.coefficient + self.intercept, dtype=np.float64)


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
    return SupportVectors(
        mean=scaler.mean_,
        scale=scaler.scale_,
        vectors=model.support_vectors_,
        coefficient=model.dual_coef_[0] * spread,
        intercept=np.asarray(model.intercept_[0] * spread + centre),
    )
