"""The table and the report of what a study has computed so far."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from foundation.files import write_text
from foundation.paths import config_path
from foundation.study import report
from foundation.study.cells import COLUMNS, job_of
from foundation.study.grid import Cell
from foundation.study.locks import in_turn
from foundation.study.plan import Plan
from foundation.study.summary import read_reference, summary, summary_lines


def write_results(plan: Plan, grid: Sequence[Cell]) -> pd.DataFrame:
    """Write results.csv from all cells that stand in the study's folder, those of earlier starts too.

    A cell of this grid that stands there with another recipe is left out: it is to be computed again.
    """
    with in_turn(plan.out / ".results.lock"):
        table = collect(plan, grid)
        write_text(plan.out / "results.csv", table.to_csv(index=False))
    return table


def collect(plan: Plan, grid: Sequence[Cell]) -> pd.DataFrame:
    """All rows, in the order of the axes."""
    jobs = {cell.name: job_of(plan, cell) for cell in grid}
    rows: list[dict[str, Any]] = []
    for file in (plan.out / "cells").glob("*.json"):
        content = json.loads(file.read_text())
        if jobs.get(file.stem, content["job"]) == content["job"]:
            rows.append(content["result"])
    axes = plan.config.axes
    order = {
        "property": [*axes.target, *plan.folder.targets],
        "trial": axes.trial,
        "source": axes.source,
        "strategy": axes.strategy,
    }

    def key(row: dict[str, Any]) -> tuple[Any, ...]:
        def place(column: str) -> tuple[int, str]:
            known = order[column]
            return (known.index(row[column]) if row[column] in known else len(known), row[column])

        return place("property"), row["size"], place("trial"), row["seed"], place("source"), place("strategy")

    rows.sort(key=key)
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    whole = ["size", "seed", "n_test", "trainable_parameters", "epochs"]
    return table.astype(dict.fromkeys(whole, "Int64"))


def write_report(plan: Plan, table: pd.DataFrame, reference: str | None) -> list[str]:
    """Write report.html and summary.json beside the table.

    Args:
        plan: The study.
        table: What ``write_results`` gave.
        reference: CSV of another work's results; None for the configured one.

    Returns:
        The summary in a few lines.
    """
    if table.empty:
        return []
    other = reference_of(plan, reference)
    report.write_report(table, other, plan.out)
    return summary_lines(summary(table, other))


def reference_of(plan: Plan, given: str | None) -> pd.DataFrame | None:
    """The results of another work; None where none are configured.

    Raises:
        InputError: If there is no such file, or it is none of this kind.
    """
    if given is not None:
        return read_reference(config_path(given))
    if plan.config.reference is None:
        return None
    return read_reference(plan.config.path.parent / plan.config.reference)
