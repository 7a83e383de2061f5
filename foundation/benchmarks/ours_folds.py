"""Our encoder as `foundation adapt --folds 5` uses it: five models, each without a fifth, mixed with companions.

``python -m foundation.benchmarks.ours_folds`` does one job of training.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from datamodules.matching import reduced_formula
from datamodules.properties import Property
from foundation.auto.folds import cut_by_formula
from foundation.benchmarks.ours import Ours
from foundation.benchmarks.peers.contest import Clock, Crystals, Rows, say
from foundation.benchmarks.peers.training import Predictor, fit_for, parts_of
from foundation.blending import GRID, mixtures
from foundation.classical.blended import Weights
from foundation.classical.companions import Companions, fit_companions
from foundation.classical.descriptors import describe_graphs
from foundation.process import keep_freed_memory

COUNT = 5
_TARGET = Property("target")


def train_folds(crystals: Crystals, job: dict[str, Any]) -> dict[str, Any]:
    """Train the models one after another within one budget, then judge the mean of their mixtures.

    Of a longer budget other cuts into folds get a part each: a few hundred crystals are learned by heart in minutes,
    and more models help where longer training harms. Graphs, descriptors, companions and what is predicted to find
    the weights are part of the budget; judging is not.

    Args:
        crystals: The crystals.
        job: As ``train_for`` of the peers takes it, and ``cuts``, how often the crystals are cut into folds.

    Returns:
        What ``train_for`` returns, with the ``weights`` of encoder and companions.
    """
    clock, judging = Clock(job["device"]), 0.0
    fit, judged = parts_of(crystals, job["fit"]), parts_of(crystals, job["judge"])
    formulas = [reduced_formula(crystals.numbers[crystals.atoms(row)]) for row in fit.tolist()]
    target = crystals.target[fit]
    descriptors = _described(crystals, fit, job)
    begin = clock.seconds()
    judged_descriptors = _described(crystals, judged, job)
    judging += clock.seconds() - begin
    own, others = np.zeros((len(Weights._fields), len(fit))), []
    took = []
    for number in range(job["cuts"] * COUNT):
        seed = job["seed"] + number
        torch.manual_seed(seed)
        held = cut_by_formula(formulas, COUNT, job["seed"] + number // COUNT) == number % COUNT
        companions = fit_companions(descriptors[~held], target[~held], _TARGET, seed=seed)
        share = (job["budget"] - (clock.seconds() - judging)) / (job["cuts"] * COUNT - number)
        contestant = Ours(crystals, job)
        contestant.model.to(job["device"])
        model_says, found = fit_for(contestant, crystals, fit[~held], {**job, "budget": share, "seed": seed})
        took.append(found)
        says = _Mixed(model_says, companions)
        own[:, held] += says(fit[held], descriptors[held]) / job["cuts"]
        begin = clock.seconds()
        others.append(says(judged, judged_descriptors))
        judging += clock.seconds() - begin
    best = int(np.abs(mixtures(own, _TARGET) - target).mean(axis=1).argmin())
    predicted = mixtures(np.mean(others, axis=0), _TARGET)[best]
    broken = any(found["train_loss"] is None for found in took)
    return {
        **took[-1],
        "mae": None if broken else float(np.abs(predicted - crystals.target[judged]).mean()),
        **{name: sum(found[name] for found in took) for name in ("steps", "graph_seconds", "setup_seconds")},
        "seconds": clock.seconds() - judging,
        "weights": GRID[best]._asdict(),
    }


class _Mixed(NamedTuple):
    """A model, and its companions, fitted to the same labels."""

    model_says: Predictor
    companions: Companions

    def __call__(self, rows: Rows, descriptors: pd.DataFrame) -> npt.NDArray[np.float64]:
        """[4, K] for these crystals."""
        return np.stack([self.model_says(rows), *self.companions.physical(descriptors, _TARGET)])


def _described(crystals: Crystals, rows: Rows, job: dict[str, Any]) -> pd.DataFrame:
    """[K, D] descriptors of these crystals."""
    ours = Ours(crystals, job)
    ours.prepare(rows)
    assert ours.graphs is not None
    return describe_graphs(ours.graphs, ours.place[rows], ours.module.encoder.recipe)


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_default_dtype(torch.float32)
    keep_freed_memory()
    job = json.loads(sys.stdin.readline())
    say(train_folds(Crystals.load(job["data"]), job))
