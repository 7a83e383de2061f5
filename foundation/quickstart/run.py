"""The main job in small: alloys made here, joint pretraining, adaptation to a held-back property, the comparison."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.properties import KNOWN
from foundation import plots
from foundation.files import write_json, write_text
from foundation.quickstart.baselines import baseline_errors
from foundation.quickstart.models import Settings, adapt_all, few_labels, pretrain
from foundation.quickstart.prepare import HELD_BACK, prepare
from foundation.training.run import RunSettings

Say = Callable[[str], None]
Values = npt.NDArray[np.float64]

RESULTS = ("adapt", "metrics.json", "plots", "pretrain", "results.csv")
UNIT = KNOWN[HELD_BACK].unit


def run(out: Path, say: Say, settings: Settings | None = None, wandb: str = "off") -> dict[str, Any]:
    """Do the whole job and leave everything in one folder.

    Args:
        out: The folder. Results of an earlier run in it are moved aside; its alloys are used again.
        say: Takes the lines for the person at the terminal.
        settings: What to do.
        wandb: "offline", "online" or "off".

    Returns:
        What metrics.json holds.

    Raises:
        InputError: If the folder holds something else.
    """
    settings = settings or Settings()
    claim(out, say)
    prepared = prepare(out / "data", settings.labels, settings.test, say)
    pretrained, known = pretrain(prepared, settings, RunSettings(out / "pretrain", wandb), say)
    rows, pairs = adapt_all(prepared, settings, pretrained, RunSettings(out / "adapt", wandb), say)
    data = few_labels(prepared)
    data.choose([HELD_BACK], pretrained.spec.build_encoder().recipe)
    results = {
        "crystals": prepared.counts,
        "property": HELD_BACK,
        "unit": UNIT,
        "pretraining": known,
        "baselines": baseline_errors(data),
        "strategies": rows,
    }
    _plot(out, results, pairs)
    _write_rows(out / "results.csv", results)
    write_json(out / "metrics.json", results)
    return results


def claim(out: Path, say: Say) -> None:
    """Make room for a run: what an earlier one left is moved into ``earlier-N``, nothing is deleted.

    Raises:
        InputError: If the folder holds something else.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out}: is a file; give a folder")
    found = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if found and "data" not in found:
        raise InputError(f"--out {out}: holds something else than a quickstart; give another folder")
    taken = [name for name in RESULTS if name in found]
    if not taken:
        return
    number = 1
    while (out / f"earlier-{number}").exists():
        number += 1
    earlier = out / f"earlier-{number}"
    earlier.mkdir()
    for name in taken:
        os.replace(out / name, earlier / name)
    say(f"{out} holds an earlier run: its {', '.join(taken)} are moved to {earlier}")


def _plot(out: Path, results: Mapping[str, Any], pairs: Mapping[str, Values]) -> None:
    folder = out / "plots"
    plots.learning_curves(out / "pretrain" / "metrics.csv", folder / "learning_curves.png")
    plots.parity(pairs, dict.fromkeys(pairs, UNIT), folder / "parity.png")
    baselines = results["baselines"]
    errors = {row["strategy"]: row["mae"] for row in results["strategies"]}
    errors |= {name: [error] for name, error in baselines.items() if name != "median predictor"}
    plots.comparison(
        errors, baselines["median predictor"], f"test MAE of {HELD_BACK} ({UNIT})", folder / "comparison.png"
    )


def _write_rows(path: Path, results: Mapping[str, Any]) -> None:
    """A row per model and per baseline: easy to plot again."""
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["model", "seed", f"test_mae ({UNIT})", "trainable_parameters", "seconds"])
    for row in results["strategies"]:
        for seed, (error, seconds) in enumerate(zip(row["mae"], row["seconds"], strict=True)):
            table.writerow([row["strategy"], seed, f"{error:.6g}", row["trainable_parameters"], seconds])
    for name, error in results["baselines"].items():
        table.writerow([name, "", f"{error:.6g}", "", ""])
    write_text(path, text.getvalue())
