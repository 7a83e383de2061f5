"""What pretraining brings: gains over fresh weights, harm, and joint sources against single ones."""

from __future__ import annotations

from typing import Any

import pandas as pd

from foundation.study.statistics import (
    MEDIAN,
    NO_SOURCE,
    POINT,
    SCRATCH,
    TREES,
    Pair,
    aggregate,
    methods,
    pairs,
    select,
)

JOINT = "joint"


def is_joint(source: str) -> bool:
    """Whether a source was trained on several properties; all of them have names that start alike."""
    return source.startswith(JOINT)


def adapted(rows: pd.DataFrame) -> list[tuple[str, str]]:
    """Every (source, strategy) that starts from a source."""
    return [method for method in methods(rows) if method[0] != NO_SOURCE]


def main_method(rows: pd.DataFrame) -> tuple[str, str] | None:
    """The (source, strategy) that speaks for the study; None without rows.

    Test errors have no say: ``auto`` comes first, then what starts from a source, from fresh weights, and what has no
    encoder; among these what covers most properties and sizes, then what the results name first.
    """

    def order(method: tuple[str, str]) -> tuple[bool, bool, bool, int]:
        points = len(select(rows, method)[POINT].drop_duplicates())
        return method in (MEDIAN, TREES), method[1] != "auto", method[0] == NO_SOURCE, -points

    return min(methods(rows), key=order, default=None)


def main_strategy(rows: pd.DataFrame) -> str | None:
    """The strategy by which sources are compared: the one that was tried with most sources and properties."""
    tried = rows[rows["source"] != NO_SOURCE].drop_duplicates(["strategy", "source", "property"])
    if tried.empty:
        return None
    counts = tried["strategy"].value_counts(sort=False)
    main = main_method(rows)
    return str(max(counts.index, key=lambda name: (counts[name], main is not None and name == main[1])))


def gains(rows: pd.DataFrame, strategy: str) -> pd.DataFrame:
    """Share of the error of fresh weights that each source takes away, with its standard error.

    Columns: property, size, source, gain, standard_error.
    """
    scratch = select(rows, SCRATCH)
    found: list[dict[str, Any]] = []
    for source, name in adapted(rows):
        if name == strategy:
            for pair in pairs(select(rows, (source, strategy)), scratch):
                place = {"property": pair.target, "size": pair.size, "source": source}
                found.append({**place, "gain": 1.0 - pair.ratio, "standard_error": pair.standard_error})
    return pd.DataFrame(found, columns=["property", "size", "source", "gain", "standard_error"])


def negative_transfers(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Adapted models that are worse than fresh weights, the worst first.

    ``beyond`` says whether the excess is larger than its standard error over trials or seeds; None where it has none.
    """
    scratch = select(rows, SCRATCH)
    found: list[dict[str, Any]] = []
    for source, strategy in adapted(rows):
        for pair in pairs(select(rows, (source, strategy)), scratch):
            if pair.ratio > 1 + 1e-9:  # not by rounding alone
                found.append({"source": source, "strategy": strategy, **excess(pair, 1.0)})
    return sorted(found, key=lambda case: -case["ratio"])


def excess(pair: Pair, limit: float) -> dict[str, Any]:
    """A pair whose ratio is above a limit, in plain values."""
    error = pair.standard_error
    known = error == error
    return {
        "property": pair.target,
        "size": pair.size,
        "ratio": pair.ratio,
        "difference": float(pair.ours.mean() - pair.theirs.mean()),
        "standard_error": error if known else None,
        "beyond": bool(pair.ratio - limit > error) if known else None,
        "repeats": len(pair.ours),
        "unit": pair.unit,
    }


def joint_source(rows: pd.DataFrame, strategy: str) -> str | None:
    """The joint source that others are held against: the plain one, else the first."""
    joint = [source for source, name in adapted(rows) if name == strategy and is_joint(source)]
    return JOINT if JOINT in joint else next(iter(joint), None)


def against_joint(rows: pd.DataFrame, strategy: str) -> dict[str, list[Pair]]:
    """Source -> its errors beside those of the joint source."""
    joint = joint_source(rows, strategy)
    if joint is None:
        return {}
    own = select(rows, (joint, strategy))
    others = [source for source, name in adapted(rows) if name == strategy and source != joint]
    found = {source: pairs(select(rows, (source, strategy)), own) for source in others}
    return {source: compared for source, compared in found.items() if compared}


def joint_against_best_single(rows: pd.DataFrame, strategy: str) -> list[Pair]:
    """The joint source beside the best single source of every property and size.

    The best one is known only afterwards, from the test errors: this flatters the single sources.
    """
    joint = joint_source(rows, strategy)
    single = rows[(rows["strategy"] == strategy) & (rows["source"] != NO_SOURCE) & ~rows["source"].map(is_joint)]
    if joint is None or single.empty:
        return []
    best = aggregate(single).sort_values("mean").drop_duplicates(POINT)
    chosen = single.merge(best[[*POINT, "source"]], on=[*POINT, "source"])
    return pairs(select(rows, (joint, strategy)), chosen)
