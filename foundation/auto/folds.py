"""The labels cut into folds, each of which is predicted by what learned from the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from sklearn.model_selection import GroupKFold

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.splits import Split
from foundation.inference import Rows, Values
from foundation.training.scaling import check_varied, is_number


@dataclass(frozen=True)
class Folds:
    """Labelled crystals and the fold that each belongs to.

    Attributes:
        data: The data module that they come from.
        rows: [n] rows of the store.
        labels: [n] in physical units; zeros of what is not one number per crystal, whose predictions are then errors.
        fold: [n] which fold.
    """

    data: CrystalDataModule
    rows: Rows
    labels: Values
    fold: npt.NDArray[np.int64]

    @property
    def count(self) -> int:
        """How many folds there are."""
        return int(self.fold.max()) + 1

    @property
    def size_of_training(self) -> int:
        """How many labels train where one fold is held out, about."""
        return len(self.rows) * (self.count - 1) // self.count

    def medians(self) -> Values:
        """[n] the median of the labels of all other folds."""
        return np.array([np.median(self.labels[self.fold != held]) for held in range(self.count)])[self.fold]

    def data_of(self, fold: int, most: int | None = None) -> CrystalDataModule:
        """The data with one fold held out.

        Args:
            fold: Which fold is to be predicted.
            most: How many of the others train at most.
        """
        train = self.rows[self.fold != fold]
        if most is not None and len(train) > most:
            train = np.random.default_rng(fold).permutation(train)[:most]
        none = np.empty(0, dtype=np.int64)
        return self.data.with_split(Split(train, none, self.rows[self.fold == fold], f"fold {fold} held out"))


def cut(data: CrystalDataModule, count: int, seed: int, option: str = "--auto.folds") -> Folds:
    """Cut the labels that train and validate into folds, no reduced formula in two of them.

    Args:
        data: The data, one property chosen.
        count: How many folds.
        seed: Seed of the cut.
        option: What says how many folds, for the message.

    Raises:
        InputError: If there are fewer labels or formulas than folds, or all labels are the same.
    """
    name = data.names[0]
    rows = np.concatenate([data.split.train, data.split.val])
    labels = data.labels[torch.from_numpy(rows), 0].double().numpy()
    rows, labels = rows[~np.isnan(labels)], labels[~np.isnan(labels)]
    if not is_number(data.property_of(name)):
        labels = np.zeros_like(labels)
    formulas = [data.store.formulas[row] for row in rows]
    if len(set(formulas)) < count:
        raise InputError(
            f"{option} {count}: {len(rows)} labels of {len(set(formulas))} formulas are fewer than {count} folds; "
            "give more labels or fewer folds"
        )
    check_varied(name, data)
    if count < 2:
        raise InputError(f"{option} {count}: give at least 2")
    return Folds(data, rows, labels, cut_by_formula(formulas, count, seed))


def cut_by_formula(formulas: Sequence[str], count: int, seed: int) -> npt.NDArray[np.int64]:
    """[n] the fold of each of n crystals, no formula in two of them."""
    fold = np.empty(len(formulas), dtype=np.int64)
    splitter = GroupKFold(count, shuffle=True, random_state=seed)
    for number, (_, held) in enumerate(splitter.split(fold, groups=formulas)):
        fold[held] = number
    return fold
