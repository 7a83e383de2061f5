"""The pictures a run leaves behind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # the backend must be chosen before
from matplotlib.figure import Figure

Values = npt.NDArray[np.float64]


def learning_curves(metrics_csv: Path, out: Path) -> None:
    """Training and validation loss of every property against the epoch.

    Args:
        metrics_csv: The run's metrics.csv.
        out: PNG to write.
    """
    table = pd.read_csv(metrics_csv)
    columns = [str(column) for column in table.columns]
    names = sorted(
        column.split("/")[1] for column in columns if column.startswith("train/") and column.endswith("/loss")
    )
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.4), squeeze=False, layout="constrained")
    for axis, name in zip(axes[0], names, strict=True):
        for part in ("train", "val"):
            column = f"{part}/{name}/loss"
            if column in table:
                curve = table[["epoch", column]].dropna()
                axis.plot(curve["epoch"], curve[column], label=part)
        axis.set(title=name, xlabel="epoch", ylabel="loss (scaled)")
        axis.legend()
    save(figure, out)


def parity(pairs: Mapping[str, Values], units: Mapping[str, str], out: Path) -> None:
    """Prediction against target, one panel per property.

    Args:
        pairs: Property name -> [K, 2] targets and predictions.
        units: Property name -> unit.
        out: PNG to write.
    """
    shown = {name: values for name, values in pairs.items() if len(values)}
    if not shown:
        return
    figure, axes = plt.subplots(1, len(shown), figsize=(4 * len(shown), 3.8), squeeze=False, layout="constrained")
    for axis, (name, values) in zip(axes[0], shown.items(), strict=True):
        low, high = float(values.min()), float(values.max())
        axis.plot([low, high], [low, high], color="gray", linewidth=1)
        axis.scatter(values[:, 0], values[:, 1], s=8, alpha=0.5, edgecolors="none")
        mae = np.abs(values[:, 0] - values[:, 1]).mean()
        unit = units.get(name, "")
        axis.set(title=f"{name}: MAE {mae:.3g} {unit}", xlabel=f"target {unit}", ylabel=f"predicted {unit}")
    save(figure, out)


def comparison(errors: Mapping[str, list[float]], baseline: float, label: str, out: Path) -> None:
    """Test error of several strategies, a dot per seed, beside the median predictor.

    Args:
        errors: Strategy -> error of each seed.
        baseline: Error of the median predictor.
        label: What the error is, with its unit.
        out: PNG to write.
    """
    figure, axis = plt.subplots(figsize=(1.4 * len(errors) + 2, 3.6), layout="constrained")
    for position, values in enumerate(errors.values()):
        axis.bar(position, np.mean(values), width=0.6, color="tab:blue", alpha=0.4)
        axis.scatter([position] * len(values), values, color="tab:blue", s=16, zorder=3)
    axis.axhline(baseline, color="gray", linestyle="--", label="median predictor")
    axis.set_xticks(range(len(errors)), list(errors))
    axis.set_ylabel(label)
    axis.legend()
    save(figure, out)


def save(figure: Figure, out: Path) -> None:
    """Write a figure and forget it."""
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=130)
    plt.close(figure)
