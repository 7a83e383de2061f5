"""`--strategy auto`: source, strategy, learning rate and epochs, chosen on the training labels alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datamodules.datamodule import CrystalDataModule
from datamodules.splits import Split
from foundation.adaptation import Adaptation
from foundation.auto.candidates import AutoSettings, Setting
from foundation.auto.folds import Folds, cut
from foundation.auto.search import search
from foundation.auto.verdict import SHARES, Verdict, decide
from foundation.classical.descriptors import describe
from foundation.classical.trees import fit_trees
from foundation.inference import Values
from foundation.strategies.combined import Combined
from foundation.strategies.shrink import Shrink
from heads.scalar import ScalarHead


def choose(
    setting: Setting, data: CrystalDataModule, settings: AutoSettings, budget: float, seed: int
) -> tuple[Adaptation, CrystalDataModule, Verdict]:
    """Search within the budget, and decide.

    Args:
        setting: What candidates share.
        data: The data, its property chosen; crystals that test play no part.
        settings: What is tried.
        budget: Seconds, for the search and one final fit.
        seed: Seed of the folds.

    Returns:
        The winner's adaptation, the data in which every label trains, and the verdict.

    Raises:
        InputError: If the labels are too few or all the same.
    """
    folds = cut(data, settings.folds, seed)
    opponents = {"the median": folds.medians(), "gradient-boosted trees": _trees(folds)}
    rungs = search(setting, folds, settings, budget, data.batch_size)
    head = setting.head.build(str(setting.adaptation(rungs[-1].scores[0].candidate).spec.build_encoder().irreps_out))
    can_shrink = isinstance(head, ScalarHead) and head.can_shrink
    verdict = decide(rungs, folds, opponents, setting.head.property, SHARES if can_shrink else (1.0,))
    adaptation = setting.adaptation(verdict.candidate)
    if verdict.share < 1:
        adaptation = replace(adaptation, strategy=Combined([adaptation.strategy, Shrink(verdict.share)]))
    return adaptation, _all_train(data), verdict


def _trees(folds: Folds) -> Values:
    """[n] out-of-fold predictions of gradient-boosted trees."""
    described = describe(folds.data, folds.rows)
    property = folds.data.property_of(folds.data.names[0])
    predicted = np.empty(len(folds.rows))
    for held in range(folds.count):
        model = fit_trees(described[folds.fold != held], folds.labels[folds.fold != held], property, seed=held)
        predicted[folds.fold == held] = model.predict(described[folds.fold == held])
    return predicted


def _all_train(data: CrystalDataModule) -> CrystalDataModule:
    """The data in which crystals that validated train too: what validation is for has been done."""
    split = data.split
    everything = np.concatenate([split.train, split.val])
    how = f"{split.how}; chosen by cross-validation, then all {len(everything)} train"
    return data.with_split(Split(everything, np.empty(0, dtype=np.int64), split.test, how, split.notes))
