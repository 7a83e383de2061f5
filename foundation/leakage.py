"""What an encoder has seen of the crystals that it is trained or judged on now, with which labels.

A leak is a crystal whose label, of the same quantity under whatever name (``datamodules.synonyms``), the encoder has
been trained or validated on, here or in a checkpoint that it comes from: the same structure, or only the same reduced
formula, because the same crystal relaxed otherwise has another volume. What it has seen with another quantity is told,
and is no leak.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from datamodules.datamodule import CrystalDataModule, Part
from datamodules.errors import InputError
from datamodules.fingerprints import Seen
from datamodules.synonyms import same_quantity
from foundation.checkpoint import Checkpoint
from foundation.files import write_json
from foundation.process import is_first_process

Mode = Literal["warn", "exclude", "error"]
PARTS: tuple[Part, ...] = ("train", "val", "test")
Say = Callable[[str], None]
Flags = npt.NDArray[np.bool_]
Sightings = dict[Part, tuple[Flags, Flags]]  # part -> [N, P] by structure, [N, P] by formula


def check_leakage(
    data: CrystalDataModule,
    encoders: Sequence[Checkpoint],
    mode: Mode,
    say: Say,
    parts: Sequence[Part] = PARTS,
    judging: Sequence[Part] = ("val", "test"),
) -> dict[str, Any]:
    """Compare crystals with what an encoder has seen, tell it, and do what is to be done about leaks.

    Args:
        data: The data, its properties chosen.
        encoders: The checkpoint to start from, or several to choose from, or the members of an ensemble; none for
            fresh weights.
        mode: "warn" tells; "exclude" takes leaked labels, and crystals without any other, out of the judging parts;
            "error" refuses them.
        say: Takes the lines for the person at the terminal.
        parts: The parts to look at.
        judging: Those of them whose labels judge a model.

    Returns:
        Plain values for metrics.json.

    Raises:
        InputError: If there is a leak and the mode is "error"; if "exclude" leaves nothing in the last of the judging
            parts; or if a mode other than "warn" is asked for where nobody knows what the encoder has seen.
    """
    report: dict[str, Any] = {"encoder": None, "mode": mode, "manifest": "fresh weights", "properties": {}}
    if not encoders:
        return report
    seen = Seen.joined([encoder.seen for encoder in encoders])
    report["encoder"] = str(encoders[0].path)
    report["manifest"] = "complete" if seen.complete else ("partial" if len(seen) else "unknown")
    _tell_unknown(report["manifest"], report["encoder"], mode, say)
    if report["manifest"] == "unknown":
        return report
    sightings: Sightings = {part: seen.look_up(data.store, data.split.rows(part)) for part in parts}
    lines: list[str] = []
    for name in data.names:
        found = report["properties"][name] = _count(name, data, seen, sightings)
        lines += _lines(name, found)
    lines += _act(data, seen, {part: sightings[part] for part in parts if part in judging}, report)
    for line in lines:
        say(line)
    return report


def record_leakage(folder: Path, report: dict[str, Any]) -> None:
    """Put the report into every metrics.json of a run: its own, and those of the members of an ensemble."""
    if not is_first_process():
        return
    for path in [*folder.glob("metrics.json"), *folder.glob("seed*/metrics.json"), *folder.glob("fold*/metrics.json")]:
        write_json(path, json.loads(path.read_text()) | {"leakage": report})


def _tell_unknown(manifest: str, encoder: str, mode: Mode, say: Say) -> None:
    if manifest == "complete":
        return
    if manifest == "unknown":
        what = f"what {encoder} has seen is unknown, it carries no manifest"
    else:
        what = f"{encoder} may have seen more than it knows of, what it started from carries no manifest"
    if mode != "warn":
        raise InputError(f"--leakage {mode}: {what}; choose another checkpoint, or --leakage warn")
    say(f"warning: leakage: {what}")


def _count(name: str, data: CrystalDataModule, seen: Seen, sightings: Sightings) -> dict[str, Any]:
    """What was seen of the crystals that carry the label of one property."""
    same = _same(name, seen)
    names = np.array(seen.names, dtype=object)
    found: dict[str, Any] = {"same_quantity": names[same].tolist(), "other_quantity": names[~same].tolist()}
    found["parts"] = {}
    for part, both in sightings.items():
        labelled = data.labelled[data.split.rows(part), data.names.index(name)]
        by = {how: flags[labelled] for how, flags in zip(("structure", "formula"), both, strict=True)}
        found["parts"][part] = {
            "crystals": int(labelled.sum()),
            "same_quantity": {how: int(flags[:, same].any(axis=1).sum()) for how, flags in by.items()},
            "other_quantity": {how: int(flags[:, ~same].any(axis=1).sum()) for how, flags in by.items()},
            "labels": {
                label: {how: int(flags[:, place].sum()) for how, flags in by.items()}
                for place, label in enumerate(seen.names)
            },
        }
    return found


def _lines(name: str, found: dict[str, Any]) -> list[str]:
    """How many crystals were seen with the same quantity, and with others: a line each."""
    lines = []
    for kind, what in (("same_quantity", "this quantity"), ("other_quantity", "other labels")):
        told = [
            f"{part} {of[kind]['formula']} of {of['crystals']} ({of[kind]['structure']})"
            for part, of in found["parts"].items()
        ]
        if any(of[kind]["formula"] for of in found["parts"].values()):
            labels = ", ".join(found[kind])
            lines.append(f"leakage: {name}: seen with {what} ({labels}) by formula (by structure): {', '.join(told)}")
        else:
            lines.append(f"leakage: {name}: no {', '.join(found['parts'])} crystal or formula seen with {what}")
    return lines


def _act(data: CrystalDataModule, seen: Seen, judging: Sightings, report: dict[str, Any]) -> list[str]:
    """Do what is to be done about leaks, and return the lines that tell it."""
    same = np.stack([_same(name, seen) for name in data.names], axis=1)  # [P seen, P]
    leaked = {
        part: (by_formula @ same) & data.labelled[data.split.rows(part)] for part, (_, by_formula) in judging.items()
    }
    counts = {part: int(labels.sum()) for part, labels in leaked.items() if labels.any()}
    if not counts:
        return []
    what = f"{' and '.join(f'{count} {part}' for part, count in counts.items())} labels"
    if report["mode"] == "error":
        raise InputError(
            f"--leakage error: {report['encoder']} has seen {what}, of the crystal or its formula; choose another "
            "checkpoint or split, or --leakage exclude"
        )
    if report["mode"] == "warn":
        return [
            f"warning: leakage: the encoder has seen {what}, so errors look smaller than they are; --leakage exclude"
        ]
    report["left_out"] = counts
    note = f"left out {what} that {report['encoder']} has seen, of the crystal or its formula"
    for part in counts:
        data.discount(part, leaked[part])
    data.split.notes.append(note)
    last = list(judging)[-1]
    if last in counts and not len(data.split.rows(last)):
        raise InputError(
            f"--leakage exclude: {report['encoder']} has seen every {last} label, nothing is left to judge by"
        )
    return [f"leakage: {note}"]


def _same(name: str, seen: Seen) -> Flags:
    """[P] which of the properties seen are the same quantity."""
    return np.array([same_quantity(name, other) for other in seen.names], dtype=bool)
