"""A study in a few numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from datamodules.errors import InputError
from foundation.study.statistics import (
    MEDIAN,
    POINT,
    SCRATCH,
    TREES,
    Pair,
    comparable,
    geometric_mean,
    is_done,
    methods,
    of_size,
    pairs,
    pairs_with,
    select,
    tidy,
)
from foundation.study.transfer import (
    excess,
    joint_against_best_single,
    joint_source,
    main_method,
    main_strategy,
    negative_transfers,
)

LIMIT = 1.05  # ratio to the reference above which a cell is named
FEW = 100  # labels below which the median predictor is the opponent
OPPONENTS = {
    "reference": "the reference's best",
    "reference_or_median": "the better of the reference's best and the median predictor",
    "reference_scratch": "the reference from scratch",
    "scratch": "our own from_scratch",
    "median": "the median predictor",
    "trees": "boosted trees",
}


def read_reference(file: Path) -> pd.DataFrame:
    """A CSV of another work's errors: property, size, best_of_all, and where known scratch, mpt and their ``_std``.

    Raises:
        InputError: If it cannot be read or lacks one of the first three columns.
    """
    try:
        table = pd.read_csv(file, comment="#")
    except (OSError, ValueError) as error:
        raise InputError(f"reference {file}: cannot be read as CSV: {str(error).splitlines()[0]}") from error
    for column in (*POINT, "best_of_all"):
        if column not in table:
            raise InputError(f"reference {file}: no column {column!r}; it has {', '.join(map(str, table.columns))}")
    return table


def summary(results: pd.DataFrame, reference: pd.DataFrame | None) -> dict[str, Any]:
    """Counts, geometric means with intervals, and what stands out.

    Args:
        results: One row per cell, the columns of results.csv; missing columns count as unknown.
        reference: One row per property and size with ``best_of_all``, see ``read_reference``; None for none.

    Returns:
        Plain values. ``against`` has opponent -> range of sizes -> geometric mean of our error by theirs.
    """
    table = tidy(results)
    rows = comparable(table)
    main = main_method(rows)
    compared = {} if main is None else opponents(rows, main, reference)
    strategy = main_strategy(rows)
    joint = None if strategy is None else joint_source(rows, strategy)
    above = [excess(pair, LIMIT) for pair in compared.get("reference", []) if pair.ratio > LIMIT]
    seen = table[table["seen_test"] > 0]
    return {
        "cells": {
            "total": len(table),
            "ok": int(is_done(table).sum()),
            "failed": int((~is_done(table) & (table["status"] != "refused")).sum()),
            "by_status": {str(name): int(count) for name, count in table["status"].value_counts().items()},
        },
        "points": len(rows[POINT].drop_duplicates()),
        "ours": None if main is None else {"source": main[0], "strategy": main[1]},
        "against": {name: by_sizes(pairs) for name, pairs in compared.items()},
        "methods": [_method(rows, method, reference) for method in methods(rows)],
        "limit": LIMIT,
        "above_limit": sorted(above, key=lambda case: -case["ratio"]),
        "negative_transfers": negative_transfers(rows),
        "joint_against_best_single": {
            "strategy": strategy,
            "joint": joint,
            "all": None if strategy is None else geometric_mean(joint_against_best_single(rows, strategy)),
        },
        "seen_test": {"cells": len(seen), "of": int(table["seen_test"].notna().sum())},
    }


def opponents(rows: pd.DataFrame, method: tuple[str, str], reference: pd.DataFrame | None) -> dict[str, list[Pair]]:
    """Opponent -> our error beside theirs at every property and size; opponents that are not there are left out."""
    ours = select(rows, method)
    medians = [] if method == MEDIAN else pairs(ours, select(rows, MEDIAN))
    best = pairs_with(ours, published(reference, "best_of_all"))
    found = {
        "reference": best,
        "reference_or_median": _harder(best, medians),
        "reference_scratch": pairs_with(ours, published(reference, "scratch")),
        "scratch": [] if method == SCRATCH else pairs(ours, select(rows, SCRATCH)),
        "median": medians,
        "trees": [] if method == TREES else pairs(ours, select(rows, TREES)),
    }
    return {name: compared for name, compared in found.items() if compared}


def published(reference: pd.DataFrame | None, column: str) -> dict[tuple[str, int], float]:
    """(property, size) -> a column of the reference, where it has a number."""
    if reference is None or column not in reference:
        return {}
    known = reference[reference[column].notna()]
    return {
        (str(name), int(size)): float(value)
        for name, size, value in zip(known["property"], known["size"], known[column], strict=True)
    }


def by_sizes(compared: list[Pair]) -> dict[str, Any]:
    """Geometric means over all pairs, over each size, and over the sizes with enough labels where there are others."""
    sizes = sorted({pair.size for pair in compared})
    found = {"all": geometric_mean(compared)}
    if sizes and sizes[0] < FEW <= sizes[-1]:
        found[f"{FEW} and more"] = geometric_mean(of_size(compared, FEW))
    if len(sizes) > 1:
        found |= {str(size): geometric_mean(of_size(compared, size, size)) for size in sizes}
    return found


def _harder(best: list[Pair], medians: list[Pair]) -> list[Pair]:
    """At every property and size the opponent with the lower error, where both are known."""
    others = {(pair.target, pair.size): pair for pair in medians}
    both = [(pair, others[pair.target, pair.size]) for pair in best if (pair.target, pair.size) in others]
    return [max(pair, other, key=lambda each: each.ratio) for pair, other in both]


def _method(rows: pd.DataFrame, method: tuple[str, str], reference: pd.DataFrame | None) -> dict[str, Any]:
    compared = opponents(rows, method, reference)
    means = {name: geometric_mean(compared.get(name, [])) for name in ("reference", "scratch", "median")}
    points = len(select(rows, method)[POINT].drop_duplicates())
    return {"source": method[0], "strategy": method[1], "points": points, "against": means}


def summary_lines(content: dict[str, Any]) -> list[str]:
    """The summary for a terminal."""
    return [
        count_line(content),
        *(f"{OPPONENTS[name]}: {interval(found['all'])}" for name, found in content["against"].items()),
        *_standing_out(content),
    ]


def count_line(content: dict[str, Any]) -> str:
    """How many cells there are, and what became of them."""
    cells, ours = content["cells"], content["ours"]
    states = ", ".join(f"{count} {name}" for name, count in cells["by_status"].items())
    line = f"{cells['total']} cells" + (f" ({states})" if states else "")
    if ours is None:
        return f"{line}; none can be compared"
    return f"{line}; ours is {method_name(ours['source'], ours['strategy'])}, its error divided by that of"


def interval(found: dict[str, Any]) -> str:
    """A geometric mean in words."""
    spread = "no interval, nothing was repeated"
    if found["low"] is not None:
        spread = f"95 % interval {found['low']:.3f} to {found['high']:.3f}"
    cells = f"{found['cells']} property-size cells" if found["cells"] != 1 else "1 property-size cell"
    return f"{found['geometric_mean']:.3f} ({spread}; {cells}, better in {found['better_in']})"


def method_name(source: str, strategy: str) -> str:
    """A source and a strategy in words."""
    return strategy if source == SCRATCH[0] else f"{strategy} from {source}"


def _standing_out(content: dict[str, Any]) -> list[str]:
    lines = []
    above, negative = content["above_limit"], content["negative_transfers"]
    if "reference" in content["against"]:
        beyond = sum(case["beyond"] is True for case in above)
        lines.append(
            f"cells above {content['limit']} of the reference's best: {len(above)}, "
            f"{beyond} of them by more than their standard error"
        )
    if any(method["against"]["scratch"] and method["source"] != SCRATCH[0] for method in content["methods"]):
        beyond = sum(case["beyond"] is True for case in negative)
        lines.append(
            f"adapted but worse than from_scratch: {len(negative)}, {beyond} of them by more than their standard error"
        )
    if content["joint_against_best_single"]["all"]:
        lines.append(f"joint / best single source: {interval(content['joint_against_best_single']['all'])}")
    if content["seen_test"]["cells"]:
        lines.append(f"{content['seen_test']['cells']} cells start from an encoder that has seen test crystals")
    return lines
