"""metrics.csv over several starts of one run."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from foundation.files import write_text


class History(CSVLogger):
    """Lightning's logger into ``metrics.csv`` of a folder, which a kill at any moment leaves with all its rows.

    Args:
        folder: The run's folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, name="", version="")

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The writer of the file, made when it is first asked for."""
        if self._experiment is None:
            self._experiment = _Writer(self.log_dir)
        return self._experiment


class _Writer(ExperimentWriter):
    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        """A new column: Lightning would empty the file first."""
        file = Path(self.metrics_file_path)
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames)
        writer.writeheader()
        with file.open(newline="") as rows:
            writer.writerows(csv.DictReader(rows))
        write_text(file, text.getvalue())


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
        _write(_without_later_steps(_read(earlier), step), earlier)
    try:
        yield
    finally:
        if resumed and earlier.is_file():
            _join(earlier, metrics_csv, into=metrics_csv)
            earlier.unlink()


def _join(first: Path, second: Path, into: Path) -> None:
    # A row may be cut off where the writer was killed; it is of a later step than the last checkpoint.
    tables = [_read(path) for path in (first, second) if path.is_file() and path.stat().st_size]
    rows = pd.concat(tables, ignore_index=True).drop_duplicates()  # both have them after a kill right behind this
    _write(rows, into)


def _read(file: Path) -> pd.DataFrame:
    return pd.read_csv(file, dtype=str, on_bad_lines="skip")  # numbers would be rounded and no longer be the same


def _without_later_steps(rows: pd.DataFrame, step: int) -> pd.DataFrame:
    if "step" not in rows:
        return rows
    return rows[pd.to_numeric(rows["step"], errors="coerce") < step]


def _write(rows: pd.DataFrame, target: Path) -> None:
    write_text(target, rows.to_csv(index=False))
