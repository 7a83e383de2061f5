"""A tiny folder of targets, files to pretrain on beside it, and a study of them."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from ase.data import chemical_symbols
from testing import TINY_ENCODER, compounds

from datamodules.crystals import Crystal

TRIALS = ("trial1", "trial2")
STUDY: dict[str, Any] = {
    "properties": {"gap": "eV", "stiffness": "GPa:log"},
    "axes": {
        "target": ["gap", "stiffness"],
        "size": [10, 20],
        "trial": list(TRIALS),
        "seed": [0],
        "source": ["joint", "none"],
        "strategy": ["full", "from_scratch", "median"],
    },
    "encoder": TINY_ENCODER,
    "options": {"compile": False, "trainer.accelerator": "cpu", "trainer.max_epochs": 1},
    "recipes": {"full": {10: {"seeds": 2}, "larger": {"optimization.learning_rate": 0.001}}},
    "pretraining": {
        "files": ["outside/data.jsonl.gz"],
        "properties": ["band_gap", "volume"],
        "recipe": {"larger": {"data.val_share": 0.1, "data.test_share": 0.1}},
    },
    "same_quantity": [["gap", "dir_gap"]],
}


def write_folder(path: Path) -> Path:
    """A folder with two targets that have trials, and one with a single split; files to pretrain on beside it."""
    crystals = compounds(60)
    volume = np.array([crystal.volume / len(crystal) for crystal in crystals])
    gap, stiffness = 0.3 * volume, 2000.0 / volume
    write_records(path / "sets" / "gap.json.gz", crystals, gap, target=(gap - 5.0) / 4.0)
    write_records(path / "sets" / "stiffness.json.gz", crystals, stiffness)
    write_records(path / "sets" / "flat.json.gz", crystals[:40], volume[:40])
    ids = [crystal.id for crystal in crystals]
    for name in ("gap", "stiffness"):
        order = [ids[index] for index in np.random.default_rng(len(name)).permutation(50)]
        trials = {trial: {"10": order[start : start + 10], "20": order[20:40]} for start, trial in enumerate(TRIALS)}
        write_lists(path / "sets", name, {"test": ids[50:], **trials})
    write_lists(path / "sets", "flat", {"train": ids[:30], "test": ids[30:40]})
    outside = path / "outside" / "data.jsonl.gz"
    outside.parent.mkdir()
    labels = [{"band_gap": float(value), "volume": 2.0 * float(value)} for value in volume]
    lines = [{"id": f"o{k}", "structure": atoms(crystal), "labels": labels[k]} for k, crystal in enumerate(crystals)]
    outside.write_bytes(gzip.compress("\n".join(map(json.dumps, lines)).encode()))
    return path / "sets"


def write_records(file: Path, crystals: list[Crystal], values: Any, target: Any = None) -> None:
    """A file of records, with the scaled target where it is given."""
    records: list[dict[str, Any]] = [
        {"jid": crystal.id, "value": float(value), "atoms": atoms(crystal)}
        for crystal, value in zip(crystals, values, strict=True)
    ]
    for record, scaled in zip(records, [] if target is None else target, strict=False):
        record["target"] = float(scaled)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(gzip.compress(json.dumps(records).encode()))


def write_lists(folder: Path, name: str, content: Any) -> None:
    """A file of id lists."""
    (folder / "splits").mkdir(parents=True, exist_ok=True)
    (folder / "splits" / f"{name}.json").write_text(json.dumps(content))


def write_study(file: Path, **changes: Any) -> Path:
    """The tiny study as a YAML, with other values for some of its keys."""
    file.write_text(yaml.safe_dump(STUDY | changes))
    return file


def atoms(crystal: Crystal) -> dict[str, Any]:
    """A structure as JARVIS writes it."""
    return {
        "lattice_mat": crystal.lattice.tolist(),
        "coords": crystal.frac_coords.tolist(),
        "elements": [chemical_symbols[z] for z in crystal.numbers],
        "cartesian": False,
    }
