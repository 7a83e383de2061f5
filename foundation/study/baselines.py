"""Cells without an encoder: what any model has to beat."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe

Values = npt.NDArray[np.float64]
# The data, [K] labels of its training and validation rows, a seed -> predictions for its test rows, in their unit.
Predictor = Callable[[CrystalDataModule, Values, int], Values]


def _median(data: CrystalDataModule, labels: Values, seed: int) -> Values:
    from foundation.classical.trees import median_prediction

    return median_prediction(labels, len(data.split.test))


def _trees(data: CrystalDataModule, labels: Values, seed: int) -> Values:
    from foundation.classical.descriptors import describe
    from foundation.classical.trees import fit_trees

    rows = np.concatenate([data.split.train, data.split.val])
    model = fit_trees(describe(data, rows), labels, data.property_of(data.names[0]), seed)
    return np.asarray(model.predict(describe(data, data.split.test)), dtype=np.float64)


BASELINES: dict[str, Predictor] = {"median": _median, "trees": _trees}


def baseline_metrics(
    name: str, store: Path, target: str, splits: Path, trial: str, size: int, seed: int
) -> dict[str, Any]:
    """Metrics of a baseline, in the form in which a run of ``foundation adapt`` leaves them.

    It has no use for validation, so it is fitted to all labels of the list.

    Args:
        name: One of ``BASELINES``.
        store: The store of the target.
        target: The property.
        splits: Its file of lists.
        trial: Which trial.
        size: Which size.
        seed: For what is random in it.

    Raises:
        InputError: If there is nothing to fit to or to test on.
    """
    started = time.perf_counter()
    data = CrystalDataModule(str(store), splits=str(splits), trial=trial, train_size=size)
    data.choose([target], NeighborRecipe())
    column = data.labels[:, 0].double().numpy()
    labels = column[np.concatenate([data.split.train, data.split.val])]
    truth = column[data.split.test]
    if not len(labels) or not len(truth):
        raise InputError(f"{splits}: {trial}, size {size}: nothing to fit to, or nothing to test on")
    error = np.abs(truth - BASELINES[name](data, labels, seed))
    residual = float(((truth - truth.mean()) ** 2).sum())
    test = {
        "mae": float(error.mean()),
        "rmse": float(np.sqrt((error**2).mean())),
        "r2": 1.0 - float((error**2).sum()) / residual if residual > 0 else None,
        "count": len(truth),
        "median_predictor_mae": float(np.abs(truth - np.median(labels)).mean()),
    }
    seconds = round(time.perf_counter() - started, 2)
    return {"test": {target: test}, "seconds": seconds, "epochs": 0, "trainable_parameters": 0}
