"""Space groups of crystals of a store, found once and kept beside it."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.cache import is_writable
from datamodules.matching import SYMPREC, space_groups
from datamodules.store import CrystalStore

_UNKNOWN = 255


def space_groups_of(store: CrystalStore, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.uint8]:
    """[K] space groups of some crystals of a store, by ``datamodules.matching``; 0 where there is none.

    A space group costs milliseconds, those of a large store minutes. So those found are kept in a file of a byte a
    crystal, named like the cache of graphs by the files of the store, in its folder or, where that cannot be
    written, in the system's temporary folder. Two processes that find different ones at once each write a whole file;
    the last stays, and what the other found is found again when it is needed.
    """
    name = hashlib.sha256(json.dumps([store.files_hash, SYMPREC]).encode()).hexdigest()[:24] + ".npy"
    places = [store.path / "space_groups", Path(tempfile.gettempdir()) / f"foundation-space-groups-{os.getuid()}"]
    kept = np.full(len(store), _UNKNOWN, dtype=np.uint8)
    for place in places:
        if (place / name).is_file():
            known = np.load(place / name)
            kept = np.where(kept == _UNKNOWN, known, kept)
    missing = np.unique(rows[kept[rows] == _UNKNOWN])
    if len(missing):
        crystals = [store.crystal(row) for row in missing.tolist()]
        kept[missing] = space_groups(crystals, workers=len(os.sched_getaffinity(0)))
        _write(next(place for place in places if is_writable(place)) / name, kept)
    return kept[rows]


def _write(path: Path, groups: npt.NDArray[np.uint8]) -> None:
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".npy", delete=False) as file:
        np.save(file, groups)
    os.replace(file.name, path)
