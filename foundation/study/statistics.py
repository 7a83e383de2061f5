"""What the results of a study say in numbers: ratios of errors, their standard errors, their geometric mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import bootstrap

Values = npt.NDArray[np.float64]
Point = tuple[str, int]  # property, size
Runs = dict[str, dict[int, float]]  # trial -> seed -> error

POINT = ["property", "size"]
METHOD = ["source", "strategy"]
NO_SOURCE = "none"
SCRATCH = (NO_SOURCE, "from_scratch")
MEDIAN = (NO_SOURCE, "median")
TREES = (NO_SOURCE, "trees")
RESAMPLES = 4999


@dataclass(frozen=True)
class Pair:
    """Two errors at one property and size.

    Attributes:
        target: The property.
        size: Labels to train on.
        ours: [U] scaled MAE of U trials, or of U seeds where there is one trial.
        theirs: [U] scaled MAE of the opponent in the same ones.
        unit: What U counts: "trials" or "seeds".
        test: Relative standard error of ``ours`` that comes from the choice of test crystals; NaN if unknown.
    """

    target: str
    size: int
    ours: Values
    theirs: Values
    unit: str
    test: float = float("nan")

    @property
    def ratio(self) -> float:
        """Mean of ours by mean of theirs."""
        return float(self.ours.mean() / self.theirs.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of the ratio; NaN where nothing was repeated and nothing is known of the test crystals."""
        repeated = float("nan")
        if len(self.ours) > 1:
            residual = self.ours - self.ratio * self.theirs
            repeated = float(residual.std(ddof=1) / np.sqrt(len(residual)) / self.theirs.mean())
        parts = [part for part in (repeated, self.ratio * self.test) if np.isfinite(part)]
        return float(np.hypot.reduce(parts)) if parts else float("nan")


def tidy(results: pd.DataFrame) -> pd.DataFrame:
    """Results as numbers and names, whatever columns are missing."""
    columns = ["mae_scaled", "mae_physical", "r2", "n_test", "trainable_parameters", "seconds", "epochs"]
    columns += ["median_mae_scaled", "rmse_scaled", "seen_test"]
    words = {"property": "", "trial": "", "source": NO_SOURCE, "strategy": "", "status": "ok", "error": ""}
    table = results.reindex(columns=list(dict.fromkeys([*results.columns, *words, *columns, "size", "seed"])))
    for column in columns:
        table[column] = pd.to_numeric(table[column], errors="coerce").astype(float)
    for column in ("size", "seed"):
        table[column] = pd.to_numeric(table[column], errors="coerce").fillna(0).astype(int)
    for column, missing in words.items():
        table[column] = table[column].astype(object).where(table[column].notna(), missing).astype(str)
    return table


def is_done(table: pd.DataFrame) -> pd.Series[bool]:
    """Which rows of tidy results carry an error that can be compared."""
    return table["status"].eq("ok") & table["mae_scaled"].between(0, np.inf, inclusive="neither")


def comparable(table: pd.DataFrame) -> pd.DataFrame:
    """The rows that came through, with the median predictor as a method of its own.

    Where no cell computed it, the other cells of the same property, size and trial know its error.
    """
    done = table[is_done(table)]
    known = done[done["median_mae_scaled"] > 0].drop_duplicates([*POINT, "trial"])
    medians = known[[*POINT, "trial", "n_test"]].assign(mae_scaled=known["median_mae_scaled"])
    medians = medians.assign(source=MEDIAN[0], strategy=MEDIAN[1], seed=0, status="ok")
    computed = pd.MultiIndex.from_frame(select(done, MEDIAN)[[*POINT, "trial"]])
    medians = medians[~pd.MultiIndex.from_frame(medians[[*POINT, "trial"]]).isin(computed)]
    return pd.concat([done, medians], ignore_index=True) if len(medians) else done.reset_index(drop=True)


def select(rows: pd.DataFrame, method: tuple[str, str]) -> pd.DataFrame:
    """Rows of one (source, strategy)."""
    return rows[(rows["source"] == method[0]) & (rows["strategy"] == method[1])]


def methods(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Every (source, strategy), in the order of the results."""
    return list(dict.fromkeys(zip(rows["source"], rows["strategy"], strict=True)))


def aggregate(rows: pd.DataFrame) -> pd.DataFrame:
    """One row per property, size, source and strategy.

    ``mean`` weighs every trial equally; ``spread`` is the standard deviation over trials and seeds, NaN for one run.
    """
    cell = [*POINT, *METHOD]
    by_trial = rows.groupby([*cell, "trial"], sort=False)["mae_scaled"].mean()
    table = rows.groupby(cell, sort=False).agg(
        spread=("mae_scaled", "std"),
        n=("mae_scaled", "size"),
        trials=("trial", "nunique"),
        mae_physical=("mae_physical", "mean"),
        r2=("r2", "mean"),
        n_test=("n_test", "max"),
        trainable_parameters=("trainable_parameters", "mean"),
        seconds=("seconds", "mean"),
        seconds_spread=("seconds", "std"),
        seen_test=("seen_test", "max"),
    )
    return table.assign(mean=by_trial.groupby(cell, sort=False).mean()).reset_index()


def pairs(ours: pd.DataFrame, theirs: pd.DataFrame) -> list[Pair]:
    """Errors of two methods at every property and size that both have, over the trials that both have."""
    others = _runs(theirs)
    found = (_pair(point, runs, others[point]) for point, runs in _runs(ours).items() if point in others)
    return [pair for pair in found if pair is not None]


def pairs_with(ours: pd.DataFrame, errors: Mapping[Point, float]) -> list[Pair]:
    """Errors of a method beside one published number for each property and size."""
    test = _test_errors(ours)
    found: list[Pair] = []
    for point, runs in _runs(ours).items():
        if (error := errors.get(point, float("nan"))) > 0:
            values, unit = _repeats(runs)
            found.append(Pair(*point, values, np.full(len(values), error), unit, test.get(point, float("nan"))))
    return found


def geometric_mean(compared: Sequence[Pair]) -> dict[str, Any] | None:
    """Geometric mean of the ratios with a bootstrap 95 % interval; None without pairs.

    Every pair resamples its own trials. What was not repeated stays fixed; where nothing was, and nothing
    is known of the test crystals, there is no interval.
    """
    if not compared:
        return None
    centre = float(np.mean([np.log(pair.ratio) for pair in compared]))
    repeated = [pair for pair in compared if len(pair.ours) > 1]
    noise = _shared_noise(compared)
    drawn = np.zeros(RESAMPLES)
    if repeated:
        drawn = _resampled(repeated) / len(compared)
        # The logarithm of a mean of few resampled values lies below that of the mean itself.
        drawn -= drawn.mean()
    drawn = drawn + np.random.default_rng(0).normal(0.0, noise, RESAMPLES)
    known = bool(repeated) or noise > 0
    low, high = np.exp(centre + np.quantile(drawn, [0.025, 0.975])) if known else (None, None)
    return {
        "geometric_mean": float(np.exp(centre)),
        "low": None if low is None else float(low),
        "high": None if high is None else float(high),
        "cells": len(compared),
        "better_in": sum(pair.ratio < 1 for pair in compared),
        "resampled_cells": len(repeated),
        "test_crystals": noise > 0,
    }


def _resampled(repeated: Sequence[Pair]) -> Values:
    """[RESAMPLES] sums of the logarithms of resampled ratios."""

    def sum_of_logs(*chosen: npt.NDArray[np.int64], axis: int = -1) -> Values:
        total = np.zeros(np.shape(chosen[0])[:-1])
        for pair, index in zip(repeated, chosen, strict=True):
            # Resamples one shorter than the sample: full ones understate the variance by 1 / U, a third of it at U = 3.
            kept = np.asarray(index, dtype=np.int64)[..., 1:]
            total = total + np.log(pair.ours[kept].mean(-1) / pair.theirs[kept].mean(-1))
        return total

    indices = tuple(np.arange(len(pair.ours)) for pair in repeated)
    options = {"n_resamples": RESAMPLES, "vectorized": True, "method": "percentile", "rng": np.random.default_rng(0)}
    return np.asarray(bootstrap(indices, sum_of_logs, **options).bootstrap_distribution, dtype=np.float64)


def _shared_noise(compared: Sequence[Pair]) -> float:
    """Standard error of the mean logarithm that comes from test crystals; a property's sizes share theirs."""
    table = pd.DataFrame({"property": [p.target for p in compared], "test": [p.test for p in compared]})
    by_property = table.groupby("property")["test"].sum()  # NaN counts as nothing known
    return float(np.sqrt((by_property**2).sum())) / len(compared)


def _runs(rows: pd.DataFrame) -> dict[Point, Runs]:
    """The errors of one method by property and size."""
    found: dict[Point, Runs] = {}
    columns = (rows[name] for name in (*POINT, "trial", "seed", "mae_scaled"))
    for name, size, trial, seed, error in zip(*columns, strict=True):
        found.setdefault((name, size), {}).setdefault(trial, {})[seed] = error
    return found


def _pair(point: Point, ours: Runs, theirs: Runs) -> Pair | None:
    both = [trial for trial in ours if trial in theirs]
    if not both:
        return None
    mine, unit = _repeats({trial: ours[trial] for trial in both})
    other, _ = _repeats({trial: theirs[trial] for trial in both})
    if len(both) > 1:
        return Pair(*point, mine, other, unit)
    left, right = ours[both[0]], theirs[both[0]]
    shared = [seed for seed in left if seed in right]
    if len(shared) > 1:
        mine, other = (np.array([runs[seed] for seed in shared]) for runs in (left, right))
    else:  # other seeds have nothing to do with ours: their mean stands
        other = np.full(len(mine), other.mean())
    return Pair(*point, mine, other, unit)


def _repeats(runs: Runs) -> tuple[Values, str]:
    """[U] errors by trial, over its seeds; by seed where there is one trial."""
    if len(runs) > 1:
        return np.array([np.mean(list(seeds.values())) for seeds in runs.values()]), "trials"
    (seeds,) = runs.values()
    return np.array(list(seeds.values())), "seeds"


def _test_errors(rows: pd.DataFrame) -> dict[Point, float]:
    """Relative standard error of every mean error over the test crystals, which its bootstrap over them tends to."""
    known = rows[np.isfinite(rows["rmse_scaled"]) & (rows["n_test"] > 1)]
    variance = (known["rmse_scaled"] ** 2 - known["mae_scaled"] ** 2).clip(lower=0.0) / known["n_test"]
    relative = known[POINT].assign(error=np.sqrt(variance) / known["mae_scaled"])
    return {(name, size): error for (name, size), error in relative.groupby(POINT)["error"].mean().items()}


def of_size(compared: Iterable[Pair], low: float, high: float = np.inf) -> list[Pair]:
    """Pairs whose size is from ``low`` to ``high``."""
    return [pair for pair in compared if low <= pair.size <= high]
