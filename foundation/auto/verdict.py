"""Which candidate wins, how good it will be, and whether it is better than what costs nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from foundation.auto.candidates import SCRATCH, Candidate
from foundation.auto.folds import Folds
from foundation.auto.search import Rung, Score
from foundation.blending import ALONE, GRID, can_blend, mixtures, nested_errors
from foundation.classical.blended import Weights
from foundation.commands.report import number
from foundation.inference import Values

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean with its bootstrap confidence interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{number(self.value)} [{number(self.low)}, {number(self.high)}]"


@dataclass(frozen=True)
class Verdict:
    """What the search says.

    Attributes:
        candidate: The winner.
        epochs: How long it should train.
        weights: How much the model, a forest and support vectors on descriptors, and the median of the labels say.
        estimate: Error to expect, by choosing again without each fold and judging on that fold.
        gains: Opponent -> how much lower the winner's error is, label by label.
        lines: The same for people.
    """

    candidate: Candidate
    epochs: int
    weights: Weights
    estimate: Interval
    gains: dict[str, Interval]
    lines: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {
            "winner": str(self.candidate),
            "source": self.candidate.source,
            "strategy": self.candidate.strategy,
            "learning_rate": self.candidate.learning_rate,
            "epochs": self.epochs,
            "weights": self.weights._asdict(),
            "estimate": vars(self.estimate),
            "gains": {name: vars(gain) for name, gain in self.gains.items()},
            "said": self.lines,
        }


def decide(rungs: list[Rung], folds: Folds, beside: Values, opponents: Mapping[str, Values]) -> Verdict:
    """Judge the last rung.

    Args:
        rungs: The rungs of the search.
        folds: The labels.
        beside: [3, n] out-of-fold predictions of companions, which may be mixed in.
        opponents: Name -> [n] out-of-fold predictions of what costs nothing: the median, the trees.
    """
    last = rungs[-1]
    property = folds.data.property_of(folds.data.names[0])
    judged = folds.fold < last.folds
    labels = folds.labels[judged]
    grid = GRID if can_blend(property) else ALONE
    keys = [(score.candidate, weights) for score in last.scores for weights in grid]
    told = [
        mixtures(np.stack([score.predicted, *beside])[:, judged], property)
        if can_blend(property)
        else score.predicted[None, judged]
        for score in last.scores
    ]
    errors = np.abs(np.concatenate(told) - labels)  # [options, labels]
    candidate, weights = keys[int(errors.mean(axis=1).argmin())]
    nested = nested_errors(errors, folds.fold[judged])
    against = {name: np.abs(predicted[judged] - labels) for name, predicted in opponents.items()}
    scratch = [place for place, (tried, _) in enumerate(keys) if tried.strategy == SCRATCH]
    # Mixed likewise, so that what its companions do is not called transfer.
    if scratch and candidate.strategy != SCRATCH:
        against["from scratch"] = nested_errors(errors[scratch], folds.fold[judged])
    gains = {name: _interval(error - nested) for name, error in against.items()}
    epochs = _epochs(rungs, candidate, folds)
    estimate = _interval(nested)
    lines = [
        *_tried(rungs, property.unit),
        f"auto: chosen is {candidate}, {epochs} epochs",
        f"auto: predictions are {weights}",
        f"auto: error to expect {estimate} {property.unit}, by nested cross-validation on the training labels alone",
        *(_claim(name, float(against[name].mean()), gain, property.unit) for name, gain in gains.items()),
    ]
    return Verdict(candidate, epochs, weights, estimate, gains, lines)


def _epochs(rungs: list[Rung], candidate: Candidate, folds: Folds) -> int:
    """The length at which the winner was best, on the folds that all lengths were tried on with all labels."""
    tried: list[Score] = [score for rung in rungs[1:] or rungs for score in rung.scores if score.candidate == candidate]
    common = folds.fold < min(score.folds for score in tried)

    def error(score: Score) -> float:
        return float(np.abs(score.predicted - folds.labels)[common].mean())

    return min(reversed(tried), key=error).epochs


def _interval(values: Values) -> Interval:
    """Mean over labels, and where it lies if other labels had been drawn."""
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    drawn = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=2000, method="percentile", rng=0
    ).confidence_interval
    return Interval(mean, float(drawn.low), float(drawn.high))


def _tried(rungs: list[Rung], unit: str) -> list[str]:
    lines = []
    for rung in rungs:
        lines.append(f"auto: {rung.epochs} epochs on {rung.folds} folds:")
        lines += [f"  {number(score.mae)} {unit}  {score.candidate}" for score in rung.scores]
        lines += [f"  no time for {candidate}" for candidate in rung.left_out]
    return lines


def _claim(name: str, error: float, gain: Interval, unit: str) -> str:
    """What is said of an opponent: that it is beaten only where the labels show it."""
    told = f"auto: {name}: {number(error)} {unit}"
    if gain.low > 0:
        return f"{told}; better by {gain}"
    if gain.high < 0:
        return f"{told}; WORSE by {number(-gain.value)}: find more labels, or use what is better"
    return f"{told}; no gain over {name} can be shown with these labels, {gain}"
