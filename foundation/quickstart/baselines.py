"""What a model without an encoder makes of the same labels."""

from __future__ import annotations

import numpy as np
from sklearn.linear_model import RidgeCV

from datamodules.datamodule import CrystalDataModule
from foundation.classical.trees import median_prediction
from heads.pooling import composition

STRENGTHS = np.logspace(-4, 1, 11)


def baseline_errors(data: CrystalDataModule) -> dict[str, float]:
    """Mean absolute error on the test crystals of the median and of a line in the element fractions.

    Both learn from all labels there are, those that validate included. The line is a ridge around the mean label, its
    strength the one with the lowest leave-one-out error.

    Args:
        data: Data with one property chosen.
    """
    known, test = np.concatenate([data.split.train, data.split.val]), data.split.test
    labels = data.labels[:, 0].double().numpy()
    fractions = composition(data.graphs.gather_atoms(np.arange(len(labels)))).numpy()
    mean = labels[known].mean()
    # Fractions add up to one, so a line in them needs no intercept of its own.
    line = RidgeCV(STRENGTHS, fit_intercept=False, scoring="neg_mean_absolute_error")
    line.fit(fractions[known], labels[known] - mean)
    predictions = {
        "median predictor": median_prediction(labels[known], len(test)),
        "linear in composition": line.predict(fractions[test]) + mean,
    }
    return {name: float(np.abs(labels[test] - values).mean()) for name, values in predictions.items()}
