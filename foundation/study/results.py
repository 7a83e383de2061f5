"""The table and the report of what a study has computed so far."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from typing import Any

import pandas as pd

from foundation.files import write_text
from foundation.paths import config_path
from foundation.study.cells import COLUMNS, job_of
from foundation.study.grid import Cell
from foundation.study.locks import in_turn
from foundation.study.plan import Plan


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


def write_report(plan: Plan, table: pd.DataFrame, reference: str | None) -> None:
    """Write report.html beside the table.

    Args:
        plan: The study.
        table: What ``write_results`` gave.
        reference: CSV of another work's results; None for the configured one.
    """
    if importlib.util.find_spec("foundation.study.report") is None or table.empty:
        return
    from foundation.study.report import write_report as write

    write(table, read_reference(plan, reference), plan.out)


def read_reference(plan: Plan, given: str | None) -> pd.DataFrame | None:
    """The results of another work; None where none are configured.

    Raises:
        InputError: If there is no such file.
    """
    if given is not None:
        return pd.read_csv(config_path(given))
    if plan.config.reference is None:
        return None
    return pd.read_csv(plan.config.path.parent / plan.config.reference)
