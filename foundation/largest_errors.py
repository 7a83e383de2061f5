"""The crystals that a model is most wrong about: mislabelled ones are among them more often than not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from heads import Head, SpectrumHead
from heads.pooling import crystal_sum
from heads.shaped import ShapedHead, has_label, masked_mean

Values = npt.NDArray[np.float64]

COLUMNS = ("property", "unit", "part", "id", "formula", "target", "prediction", "error")


def crystal_errors(head: Head, predicted: Tensor, target: Tensor, batch: Any) -> Values:
    """[B, 3] target, prediction and error of each crystal, NaN without a label.

    Of a tensor these are norms, of labels of atoms the means of their norms over the atoms, and of a spectrum the means
    of the magnitudes of its bins; of one of several classes the error is what its probability lacks to 1.

    Args:
        head: What predicts.
        predicted: In physical units.
        target: Labels that are to be compared with it, NaN where missing.
        batch: The B crystals.
    """
    if isinstance(head, ShapedHead):
        there = has_label(target)
        found = torch.stack([_sizes(head, values) for values in (target, predicted, predicted - target)], dim=1)
        if head.per_atom:
            found = masked_mean(found, there[:, None].expand_as(found), batch)
            there = crystal_sum(there, batch) > 0
        found[~there] = torch.nan
    elif predicted.dim() > 1:  # probabilities of several classes
        of_true = predicted.gather(1, target.nan_to_num().long()[:, None])[:, 0]
        found = torch.stack([target, predicted.argmax(dim=1).to(target.dtype), 1 - of_true], dim=1)
    else:
        found = torch.stack([target, predicted, predicted - target], dim=1)
    found[found.isnan().any(dim=1)] = torch.nan
    return found.double().numpy()


def _sizes(head: ShapedHead, values: Tensor) -> Tensor:
    """[K, ...] -> [K]."""
    flat = values.reshape(len(values), -1)
    return flat.abs().mean(dim=1) if isinstance(head, SpectrumHead) else torch.linalg.vector_norm(flat, dim=1)


def largest_errors(errors: Mapping[str, Values], data: CrystalDataModule, part: str, count: int = 50) -> pd.DataFrame:
    """The crystals with the largest errors of every property, largest first.

    Args:
        errors: Property name -> what ``crystal_errors`` gives for the crystals of the part.
        data: The data.
        part: The part that was evaluated: "train", "val", "test" or "all".
        count: Crystals per property.
    """
    rows = data.split.rows(part)
    ids, formulas = data.store.ids, data.store.formulas
    tables = []
    for name, values in errors.items():
        labelled = np.flatnonzero(~np.isnan(values[:, 2]))
        worst = labelled[np.argsort(-np.abs(values[labelled, 2]), kind="stable")[:count]]
        unit = data.property_of(name).unit
        tables += [(name, unit, part, ids[rows[place]], formulas[rows[place]], *values[place]) for place in worst]
    return pd.DataFrame(tables, columns=list(COLUMNS))
