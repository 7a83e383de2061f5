"""From the embedded alloys to two stores: one to pretrain on, one with the held-back property."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.importing import import_store
from foundation.files import write_json
from foundation.quickstart import alloys

HELD_BACK = "shear_modulus"
PLENTIFUL = tuple(name for name in alloys.LABELS if name != HELD_BACK)

Say = Callable[[str], None]
Record = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """The embedded data, ready to train on.

    Attributes:
        pretraining: Store of many crystals with the plentiful properties.
        adaptation: Store of few crystals with the held-back property.
        splits: Id lists of the adaptation store: ``test``, and ``trial1`` with its one size.
        counts: How many crystals the generator accepted and rejected, and how many serve what.
    """

    pretraining: Path
    adaptation: Path
    splits: Path
    counts: dict[str, int]


def prepare(folder: Path, labels: int, test: int, say: Say) -> Prepared:
    """Make the alloys where they are missing or torn, divide them, and import both parts.

    Args:
        folder: Folder for everything.
        labels: Crystals with the held-back label to learn from.
        test: Crystals of unseen alloy systems to judge on.
        say: Takes the lines for the person at the terminal.

    Raises:
        InputError: If the folder cannot be used, or there are too few crystals.
    """
    crystals, rejected = _alloys(folder, say)
    records = {record["id"]: record for record in map(json.loads, crystals.read_text().splitlines())}
    refused = len(rejected.read_text().splitlines()) - 1
    split = alloys.split_by_system({id: record["system"] for id, record in records.items()}, labels, test)
    stores = {"pretraining": folder / "pretraining", "adaptation": folder / "adaptation"}
    _import(records, split.pretraining, PLENTIFUL, stores["pretraining"])
    _import(records, (*split.adaptation, *split.test), (HELD_BACK,), stores["adaptation"])
    splits = folder / "splits.json"
    write_json(splits, {"test": list(split.test), "trial1": {str(labels): list(split.adaptation)}})
    counts = {
        "accepted": len(records),
        "rejected": refused,
        "pretraining": len(split.pretraining),
        "labels": len(split.adaptation),
        "test": len(split.test),
    }
    say(f"alloys: {len(records)} accepted, {refused} rejected ({rejected} says why)")
    say(
        f"split: {len(split.pretraining)} to pretrain on, {labels} labels of {HELD_BACK} to adapt with, {test} to test "
        f"on, of {len(split.held_out)} alloy systems that appear nowhere else"
    )
    return Prepared(stores["pretraining"], stores["adaptation"], splits, counts)


def _alloys(folder: Path, say: Say) -> tuple[Path, Path]:
    """The two files of the generator, made again only if they are not what it wrote."""
    stamp = folder / "generated.json"
    files = (folder / "alloys.jsonl", folder / "alloys_rejected.csv")
    if all(file.is_file() for file in files):
        if stamp.is_file() and stamp.read_text() == _stamp(files):
            say(f"alloys: {files[0]} is whole and is used again")
            return files
        say(f"alloys: {files[0]} is torn, changed or of another version; it is made again")
    made = alloys.generate(folder)
    stamp.write_text(_stamp(made))
    return made


def _stamp(files: Sequence[Path]) -> str:
    """What the generator and its output are, as digests."""
    sources = sorted(Path(alloys.__file__).parent / name for name in ("alloys.py", "elastic.py", "prototypes.py"))
    content = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (*sources, *files)}
    return json.dumps({"ase": version("ase"), "sha256": content}, indent=1) + "\n"


def _import(records: Mapping[str, Record], ids: Sequence[str], names: Sequence[str], store: Path) -> None:
    """Write the chosen crystals with the chosen labels as JSON-lines, and import them as anybody would."""
    lines = []
    for id in ids:
        record = dict(records[id])
        for key in ("labels", "units"):
            record[key] = {name: record[key][name] for name in names}
        lines.append(json.dumps(record) + "\n")
    source = store.with_suffix(".jsonl")
    source.write_text("".join(lines))
    result = import_store([source], store, overwrite=True)
    if result.rejected or result.manifest is None or result.manifest["counts"]["crystals"] != len(ids):
        raise InputError(f"{source}: not every crystal reached the store; delete {store.parent} and start again")
