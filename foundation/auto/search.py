"""Successive halving (Jamieson & Talwalkar, 2016): many candidates briefly, the best longer and on more folds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from foundation.auto.candidates import SCRATCH, AutoSettings, Candidate, Setting
from foundation.auto.folds import Folds
from foundation.blending import can_blend
from foundation.inference import Values

FIRST_MOST = 400  # labels that train in the first rung at most
PROBE = 64  # crystals by which a step is timed


@dataclass(frozen=True)
class Score:
    """What came of one candidate in one rung.

    Attributes:
        candidate: The candidate.
        epochs: How long it trained.
        folds: On how many folds.
        predicted: [n] out of fold, NaN where not predicted.
        mae: Over the labels that were predicted, in physical units.
        seconds_per_crystal: Time of one crystal in one epoch, all else included.
    """

    candidate: Candidate
    epochs: int
    folds: int
    predicted: Values
    mae: float
    seconds_per_crystal: float


@dataclass(frozen=True)
class Rung:
    """One round of the search.

    Attributes:
        epochs: Epochs of each run.
        folds: Folds that are predicted.
        scores: What came of it, the best first.
        left_out: Candidates for which there was no time.
    """

    epochs: int
    folds: int
    scores: list[Score]
    left_out: list[Candidate]


@dataclass(frozen=True)
class Search:
    """What the search has found.

    Attributes:
        rungs: Its rounds; the last one decides.
        final_folds: Over how many folds there is time to train the winner in the end; 0 for one model of all labels.
    """

    rungs: list[Rung]
    final_folds: int


def search(setting: Setting, folds: Folds, settings: AutoSettings, budget: float, batch_size: int) -> Search:
    """Find the best candidate within a budget.

    Args:
        setting: What candidates share.
        folds: The labels.
        settings: What is tried.
        budget: Seconds for the search and the final fit.
        batch_size: Crystals per step.
    """
    started = time.monotonic()
    candidates = setting.candidates(settings)
    steps = math.ceil(len(folds.rows) / batch_size)
    epochs = max(settings.epochs, math.ceil(settings.min_steps / steps))
    per_crystal = _seconds_per_crystal(setting, folds, candidates[0])
    # The final fit trains a model without each fold, or one on all labels, for fewer epochs where even this takes long.
    affordable = settings.final_share * budget / (per_crystal * len(folds.rows))
    final_folds = folds.count if epochs * (folds.count - 1) <= affordable and can_blend(setting.head.property) else 0
    epochs = max(2, min(epochs, int(affordable)))
    search_budget = budget - per_crystal * len(folds.rows) * epochs * max(1, final_folds - 1)

    def left() -> float:
        return search_budget - (time.monotonic() - started)

    trained = min(FIRST_MOST, folds.size_of_training)
    first = int(0.4 * left() / (len(candidates) * 2 * trained * per_crystal))
    rungs = [_rung(setting, folds, candidates, max(1, min(first, epochs // 4)), 2, FIRST_MOST, left)]
    for length, most_folds, share in ((max(1, epochs // 2), 3, 0.5), (epochs, folds.count, 1.0)):
        crystal_epochs = length * folds.size_of_training
        chosen, count = _promoted(rungs[-1], crystal_epochs, min(most_folds, folds.count), share * left())
        if chosen:
            rungs.append(_rung(setting, folds, chosen, length, count, None, left))
    return Search(rungs, final_folds)


def _rung(
    setting: Setting,
    folds: Folds,
    candidates: list[Candidate],
    epochs: int,
    count: int,
    most: int | None,
    left: Callable[[], float],
) -> Rung:
    scores: list[Score] = []
    left_out: list[Candidate] = []
    longest = 0.0
    for candidate in tqdm(candidates, desc=f"{epochs} epochs, {count} folds", unit=" candidates", disable=None):
        if scores and left() < longest:
            left_out.append(candidate)
            continue
        began = time.monotonic()
        predicted = np.full(len(folds.rows), np.nan)
        crystals = 0
        for fold in range(count):
            data = folds.data_of(fold, most)
            crystals += len(data.split.train)
            predicted[folds.fold == fold] = setting.predict(candidate, data, epochs, seed=fold)
        seconds = time.monotonic() - began
        longest = max(longest, seconds)
        mae = float(np.abs(predicted - folds.labels)[folds.fold < count].mean())
        scores.append(Score(candidate, epochs, count, predicted, mae, seconds / (crystals * epochs)))
    return Rung(epochs, count, sorted(scores, key=lambda score: score.mae), left_out)


def _promoted(last: Rung, crystal_epochs: int, count: int, budget: float) -> tuple[list[Candidate], int]:
    """Who goes on, and on how many folds: the best third and the best from scratch, as far as time allows."""
    cost = {score.candidate: score.seconds_per_crystal * crystal_epochs for score in last.scores}
    order = list(cost)
    scratch = [candidate for candidate in order if candidate.strategy == SCRATCH][:1]
    for kept in range(max(1, math.ceil(len(order) / 3)), 0, -1):
        chosen = list(dict.fromkeys([*order[:kept], *scratch]))
        for number in range(count, 1, -1):
            if number * sum(cost[candidate] for candidate in chosen) <= budget:
                return chosen, number
    return [], 0


def _seconds_per_crystal(setting: Setting, folds: Folds, candidate: Candidate) -> float:
    """Time of one crystal in one epoch of training, by a short run."""
    data = folds.data_of(0, PROBE)
    setting.predict(candidate, data, 1, seed=0)  # what is made once is made now
    took = []
    for epochs in (1, 3):
        began = time.monotonic()
        setting.predict(candidate, data, epochs, seed=0)
        took.append(time.monotonic() - began)
    return max(1e-5, (took[1] - took[0]) / (2 * len(data.split.train)))
