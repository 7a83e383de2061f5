"""The crystals that a model is most wrong about: mislabelled ones are among them more often than not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from datamodules.datamodule import CrystalDataModule

COLUMNS = ("property", "unit", "part", "id", "formula", "target", "prediction", "error")


def largest_errors(
    pairs: Mapping[str, npt.NDArray[np.float64]], data: CrystalDataModule, part: str, count: int = 50
) -> pd.DataFrame:
    """The largest errors of every property of which a crystal has one number, largest first.

    Args:
        pairs: Property name -> [K, 2] targets and predictions of its labelled crystals, as ``evaluate`` gives them.
        data: The data.
        part: The part that was evaluated: "train", "val", "test" or "all".
        count: Crystals per property.
    """
    rows = data.split.rows(part)
    ids, formulas = data.store.ids, data.store.formulas
    tables = []
    for name, values in pairs.items():
        if not data.property_of(name).is_single:
            continue
        labels = data.labels[torch.from_numpy(rows), data.names.index(name)]
        labelled = rows[~torch.isnan(labels).numpy()]
        error = values[:, 1] - values[:, 0]
        worst = np.argsort(-np.abs(error), kind="stable")[:count]
        tables += [
            (name, data.property_of(name).unit, part, ids[row], formulas[row], *values[place], error[place])
            for place, row in zip(worst, labelled[worst], strict=True)
        ]
    return pd.DataFrame(tables, columns=list(COLUMNS))
