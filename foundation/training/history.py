"""metrics.csv over several starts of one run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd


@contextmanager
def kept_history(metrics_csv: Path, resumed: bool) -> Iterator[None]:
    """Put the rows of a run's earlier starts back in front of those that the logger writes.

    Lightning's CSVLogger removes the file that it finds. The rows so far wait beside it, where they survive a
    kill, and the next start takes them up.

    Args:
        metrics_csv: The run's metrics.csv.
        resumed: Whether this start goes on with a run.
    """
    earlier = metrics_csv.with_name("metrics-earlier.csv")
    if resumed and metrics_csv.is_file():
        _join(earlier, metrics_csv, into=earlier)
        metrics_csv.unlink()
    try:
        yield
    finally:
        if resumed and earlier.is_file():
            _join(earlier, metrics_csv, into=metrics_csv)
            earlier.unlink()


def _join(first: Path, second: Path, into: Path) -> None:
    tables = [pd.read_csv(path) for path in (first, second) if path.is_file() and path.stat().st_size]
    temporary = into.with_name(f".{into.name}.{os.getpid()}")
    pd.concat(tables, ignore_index=True).to_csv(temporary, index=False)
    os.replace(temporary, into)
