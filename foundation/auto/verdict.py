"""Which candidate wins, how good it will be, and whether it is better than what costs nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from datamodules.properties import Property
from foundation.auto.candidates import SCRATCH, Candidate
from foundation.auto.folds import Folds
from foundation.auto.search import Rung, Score
from foundation.commands.report import number
from foundation.inference import Values

# How far predictions go from the median of the labels towards what the model says; with few labels the whole way
# may be too far.
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
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
        share: How far its predictions go from the median of the labels; see ``SHARES``.
        estimate: Error to expect, by choosing again without each fold and judging on that fold.
        gains: Opponent -> how much lower the winner's error is, label by label.
        lines: The same for people.
    """

    candidate: Candidate
    epochs: int
    share: float
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
            "share": self.share,
            "estimate": vars(self.estimate),
            "gains": {name: vars(gain) for name, gain in self.gains.items()},
            "said": self.lines,
        }


def decide(
    rungs: list[Rung],
    folds: Folds,
    opponents: Mapping[str, Values],
    property: Property,
    shares: Sequence[float] = SHARES,
) -> Verdict:
    """Judge the last rung.

    Args:
        rungs: The rungs of the search.
        folds: The labels.
        opponents: Name -> [n] out-of-fold predictions of what costs nothing: the median, the trees.
        property: What is predicted.
        shares: How far predictions may go from the median.
    """
    last = rungs[-1]
    judged = folds.fold < last.folds
    fold, labels = folds.fold[judged], folds.labels[judged]
    medians = folds.medians()[judged]
    options = {
        (score.candidate, share): np.abs(_moved(score.predicted[judged], medians, share, property) - labels)
        for score in last.scores
        for share in shares
    }
    errors = np.stack(list(options.values()))  # [options, labels]
    keys = list(options)
    candidate, share = keys[int(errors.mean(axis=1).argmin())]
    # Chosen anew without each fold, then judged on it: what was chosen by these labels is not flattered by them.
    nested = np.empty(len(labels))
    for held in range(last.folds):
        best = int(errors[:, fold != held].mean(axis=1).argmin())
        nested[fold == held] = errors[best, fold == held]
    against = {name: np.abs(predicted[judged] - labels) for name, predicted in opponents.items()}
    scratch = [score for score in last.scores if score.candidate.strategy == SCRATCH]
    if scratch and candidate.strategy != SCRATCH:
        against["from scratch"] = np.abs(scratch[0].predicted[judged] - labels)
    gains = {name: _interval(error - nested) for name, error in against.items()}
    epochs = _epochs(rungs, candidate, folds)
    estimate = _interval(nested)
    lines = _lines(rungs, candidate, epochs, share, estimate, gains, against, property)
    return Verdict(candidate, epochs, share, estimate, gains, lines)


def _epochs(rungs: list[Rung], candidate: Candidate, folds: Folds) -> int:
    """The length at which the winner was best, on the folds that all lengths were tried on with all labels."""
    tried: list[Score] = [score for rung in rungs[1:] or rungs for score in rung.scores if score.candidate == candidate]
    common = folds.fold < min(score.folds for score in tried)

    def error(score: Score) -> float:
        return float(np.abs(score.predicted - folds.labels)[common].mean())

    return min(reversed(tried), key=error).epochs


def _moved(predicted: Values, medians: Values, share: float, property: Property) -> Values:
    """Predictions moved towards the median, in the space where the head learns."""
    if property.log:
        moved: Values = 10 ** (share * np.log10(predicted) + (1 - share) * np.log10(medians))
        return moved
    return share * predicted + (1 - share) * medians


def _interval(values: Values) -> Interval:
    """Mean over labels, and where it lies if other labels had been drawn."""
    mean = float(values.mean())
    if np.ptp(values) == 0:
        return Interval(mean, mean, mean)
    drawn = stats.bootstrap(
        (values,), np.mean, confidence_level=CONFIDENCE, n_resamples=2000, method="percentile", rng=0
    ).confidence_interval
    return Interval(mean, float(drawn.low), float(drawn.high))


def _lines(
    rungs: list[Rung],
    candidate: Candidate,
    epochs: int,
    share: float,
    estimate: Interval,
    gains: Mapping[str, Interval],
    against: Mapping[str, Values],
    property: Property,
) -> list[str]:
    unit = property.unit
    lines = []
    for rung in rungs:
        lines.append(f"auto: {rung.epochs} epochs on {rung.folds} folds:")
        lines += [f"  {number(score.mae)} {unit}  {score.candidate}" for score in rung.scores]
        lines += [f"  no time for {candidate}" for candidate in rung.left_out]
    lines.append(f"auto: chosen is {candidate}, {epochs} epochs")
    if share < 1:
        lines.append(f"auto: its predictions go {share:.0%} of the way from the median of the labels")
    lines.append(f"auto: error to expect {estimate} {unit}, by nested cross-validation on the training labels alone")
    for name, gain in gains.items():
        error = f"{name} has {number(float(against[name].mean()))} {unit}"
        if gain.low > 0:
            lines.append(f"auto: {error}; better by {gain}")
        elif gain.high < 0:
            lines.append(f"auto: {error}; WORSE than {name} by {number(-gain.value)}: use {name}, or find more labels")
        else:
            lines.append(f"auto: {error}; no gain over {name} can be shown with these labels, {gain}")
    return lines
