"""What a run records at its end: final metrics, the largest errors, the parity plot, the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from foundation.tracking.artifacts import record_model
from foundation.tracking.logger import Tracker


def record_ending(tracker: Tracker, results: Mapping[str, Any], folder: Path) -> None:
    """Record what a run has left in its folder.

    Args:
        tracker: The run's record.
        results: What metrics.json holds.
        folder: The run's folder.
    """
    tracker.record(lambda: tracker.run.summary.update(final_metrics(results)))
    tracker.record(lambda: tracker.run.log(_pictures(folder)))
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if checkpoint.is_file():
        record_model(tracker, checkpoint, results)


def final_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """``final/PART/PROPERTY/METRIC`` of the parts that validate and test, ``.../derived/K_VRH/mae`` of what follows."""
    return _numbers("final", {part: results[part] for part in ("val", "test")})


def _numbers(path: str, nested: Mapping[str, Any]) -> dict[str, float]:
    """The numbers in nested mappings, by the way to them."""
    found: dict[str, float] = {}
    for key, value in nested.items():
        if isinstance(value, Mapping):
            found |= _numbers(f"{path}/{key}", value)
        elif isinstance(value, int | float):
            found[f"{path}/{key}"] = value
    return found


def _pictures(folder: Path) -> dict[str, Any]:
    import wandb

    errors = pd.read_csv(folder / "errors.csv")
    found: dict[str, Any] = {
        f"errors/{name}": wandb.Table(dataframe=table.drop(columns="property").reset_index(drop=True))
        for name, table in errors.groupby("property")
    }
    for picture in ("parity", "learning_curves"):
        file = folder / "plots" / f"{picture}.png"
        if file.is_file():
            found[f"plots/{picture}"] = wandb.Image(str(file))
    return found
