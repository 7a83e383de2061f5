"""metrics.csv over several starts of one run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd

from foundation.files import write_text


@contextmanager
def kept_history(metrics_csv: Path, step: int | None) -> Iterator[None]:
    """Put the rows of a run's earlier starts back in front of those that the logger writes.

    Lightning's CSVLogger removes the file that it finds. The rows so far wait beside it, where they survive a
    kill, and the next start takes them up.

    Args:
        metrics_csv: The run's metrics.csv.
        step: Optimizer steps behind this start, which goes on with a run; None for a fresh one. Rows of later steps
            are dropped: the run was cut off behind its last checkpoint, and takes these steps again.
    """
    resumed = step is not None
    earlier = metrics_csv.with_name("metrics-earlier.csv")
    if resumed and metrics_csv.is_file():
        _join(earlier, metrics_csv, into=earlier)
        metrics_csv.unlink()
    if step is not None and earlier.is_file():
        _write(_without_later_steps(pd.read_csv(earlier), step), earlier)
    try:
        yield
    finally:
        if resumed and earlier.is_file():
            _join(earlier, metrics_csv, into=metrics_csv)
            earlier.unlink()


def _join(first: Path, second: Path, into: Path) -> None:
    # A row may be cut off where the writer was killed; it is of a later step than the last checkpoint.
    tables = [
        pd.read_csv(path, on_bad_lines="skip") for path in (first, second) if path.is_file() and path.stat().st_size
    ]
    _write(pd.concat(tables, ignore_index=True), into)


def _without_later_steps(rows: pd.DataFrame, step: int) -> pd.DataFrame:
    if "step" not in rows:
        return rows
    return rows[pd.to_numeric(rows["step"], errors="coerce") < step]


def _write(rows: pd.DataFrame, target: Path) -> None:
    write_text(target, rows.to_csv(index=False))
