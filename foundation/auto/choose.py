"""`--strategy auto`: source, strategy, learning rate and epochs, chosen on the training labels alone."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datamodules.datamodule import CrystalDataModule
from datamodules.splits import Split
from foundation.adaptation import Adaptation
from foundation.auto.candidates import AutoSettings, Setting
from foundation.auto.folds import cut
from foundation.auto.opponents import of_numbers, of_shapes
from foundation.auto.search import search
from foundation.auto.verdict import Verdict, decide
from foundation.strategies.blend import Blend
from foundation.strategies.combined import Combined
from foundation.training.scaling import is_number


@dataclass(frozen=True)
class Choice:
    """What is to be trained in the end.

    Attributes:
        adaptation: The winner's.
        data: In which every label trains.
        verdict: Why, and what to expect.
        folds: Over how many folds the winner is trained; 0 for one model of all labels.
    """

    adaptation: Adaptation
    data: CrystalDataModule
    verdict: Verdict
    folds: int


def choose(setting: Setting, data: CrystalDataModule, settings: AutoSettings, budget: float, seed: int) -> Choice:
    """Search within the budget, and decide.

    Args:
        setting: What candidates share.
        data: The data, its property chosen; crystals that test play no part.
        settings: What is tried.
        budget: Seconds, for the search and the final fit.
        seed: Seed of the folds.

    Raises:
        InputError: If the labels are too few or all the same.
    """
    folds = cut(data, settings.folds, seed)
    beside, opponents = of_numbers(folds) if is_number(setting.head.property) else of_shapes(folds, setting.head)
    found = search(setting, folds, settings, budget, data.batch_size)
    verdict = decide(found.rungs, folds, beside, opponents)
    adaptation = setting.adaptation(verdict.candidate)
    if not found.final_folds and verdict.weights.encoder < 1:
        adaptation = replace(adaptation, strategy=Combined([adaptation.strategy, Blend(verdict.weights)]))
    return Choice(adaptation, _all_train(data), verdict, found.final_folds)


def _all_train(data: CrystalDataModule) -> CrystalDataModule:
    """The data in which crystals that validated train too: what validation is for has been done."""
    split = data.split
    everything = np.concatenate([split.train, split.val])
    how = f"{split.how}; chosen by cross-validation, then all {len(everything)} train"
    return data.with_split(Split(everything, np.empty(0, dtype=np.int64), split.test, how, split.notes))
