"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

_COLUMNS = (
    *("mae", "rmse", "r2", "median_predictor_mae", "frobenius", "cumulative_mae", "last_peak_mae"),
    *("baseline_mae", "baseline_frobenius", "baseline_last_peak_mae"),
    *("accuracy", "balanced_accuracy", "auroc", "f1", "majority_accuracy", "spread"),
)


def print_metrics(results: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """Print the metrics of every property, in physical units, and the errors of what follows from a tensor."""
    columns = [column for column in _COLUMNS if any(column in result for result in results.values())]
    rows = [
        [name, result["unit"], f"{result['count']:,}", *(number(result.get(column)) for column in columns)]
        for name, result in results.items()
    ]
    print_table(title, ["property", "unit", "labels", *(column.replace("_", " ") for column in columns)], rows)
    derived = [
        [f"{name}.{quantity}", found["unit"], f"{found['count']:,}", number(found["mae"]), number(found["median_mae"])]
        for name, result in results.items()
        for quantity, found in result.get("derived", {}).items()
    ]
    if derived:
        print_table("what follows from them", ["quantity", "unit", "labels", "mae", "mae of the median"], derived)


def print_table(title: str, columns: list[str], rows: list[list[str]]) -> None:
    """Print a table; numbers stand to the right."""
    table = Table()
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(title, style="bold", highlight=False)
    console.print(table)


def number(value: Any) -> str:
    """A number with four significant digits, or a dash."""
    return f"{value:.4g}" if isinstance(value, int | float) else "-"
