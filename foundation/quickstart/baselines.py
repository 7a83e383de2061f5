"""What a model without an encoder makes of the same labels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datamodules.datamodule import CrystalDataModule

Values = npt.NDArray[np.float64]

STRENGTHS = np.logspace(-4, 1, 11)


def baseline_errors(data: CrystalDataModule) -> dict[str, float]:
    """Mean absolute error on the test crystals of the median and of a line in the element fractions.

    Both learn from all labels there are, those that validate included.

    Args:
        data: Data with one property chosen.
    """
    known = np.concatenate([data.split.train, data.split.val])
    labels = data.labels[:, 0].double().numpy()
    truth = labels[data.split.test]
    fractions = _fractions(data)
    line = ridge(fractions[known], labels[known], fractions[data.split.test])
    return {
        "median predictor": float(np.abs(truth - np.median(labels[known])).mean()),
        "linear in composition": float(np.abs(truth - line).mean()),
    }


def ridge(features: Values, targets: Values, asked: Values) -> Values:
    """Ridge regression around the mean target, its strength by leave-one-out within the targets.

    Args:
        features: [K, F] to learn from.
        targets: [K] to learn.
        asked: [M, F] to predict.

    Returns:
        [M] predictions.
    """
    mean = targets.mean()
    best = (np.inf, np.empty(0))
    for strength in STRENGTHS:
        gram = features.T @ features + strength * np.eye(features.shape[1])
        solve = np.linalg.solve(gram, features.T)  # [F, K]
        weights = solve @ (targets - mean)
        leverage = np.einsum("kf,fk->k", features, solve)
        left_out = (targets - mean - features @ weights) / (1 - leverage)
        error = float(np.abs(left_out).mean())
        if error < best[0]:
            best = (error, weights)
    predicted: Values = asked @ best[1] + mean
    return predicted


def _fractions(data: CrystalDataModule) -> Values:
    """[M, Z] share of every element that the store holds, for every crystal in it."""
    store = data.store
    elements = np.unique(store.numbers)
    counts = [
        (store.numbers[start:stop, None] == elements).mean(axis=0)
        for start, stop in zip(store.ptr[:-1], store.ptr[1:], strict=True)
    ]
    return np.array(counts)
