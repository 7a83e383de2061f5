"""The split of a large store as files, mapped into the memory of all its processes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import datamodules.store
from datamodules import splits
from datamodules.cache import kept
from datamodules.graph_cache import code_hash
from datamodules.splits import Split
from datamodules.store import CrystalStore

MAPPED_FROM = 100_000  # crystals of a store: with fewer, rows in memory cost less than files
# Once, on import: a source that changes later is not what this process runs.
CODE = code_hash([splits.__file__, datamodules.store.__file__])
_PARTS = ("train", "val", "test")


def mapped_split(store: CrystalStore, key: list[Any], make: Callable[[], Split]) -> Split:
    """The split of a store; of a large one, views of files that are written on first use.

    What is written into its rows stays in the memory of this process.

    Args:
        store: The store.
        key: Plain values that the split depends on besides the store, the code that makes it, and numpy's shuffle.
        make: Makes the split.
    """
    if len(store) < MAPPED_FROM:
        return make()

    def write(folder: Path) -> None:
        split = make()
        for part in _PARTS:
            np.save(folder / f"{part}.npy", split.rows(part))
        (folder / "words.json").write_text(json.dumps({"how": split.how, "notes": split.notes}), encoding="utf-8")

    place = kept(store, "splits", [*key, CODE, np.__version__], write)
    train, val, test = (np.asarray(np.load(place / f"{part}.npy", mmap_mode="c")) for part in _PARTS)
    return Split(train, val, test, **json.loads((place / "words.json").read_text(encoding="utf-8")))
