"""The graphs of a whole store, found once and memory-mapped from then on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datamodules.batching import GraphArrays, build_graphs
from datamodules.crystals import Crystal
from datamodules.graph import NeighborRecipe
from datamodules.store import CrystalStore

LAYOUT = 2  # of the files below; another layout is another cache
CHUNK = 1000  # crystals whose graphs are held in memory while a cache is made
_ARRAYS = ("num_edges", "sender", "receiver", "shift", "cutoff")


def cached_graphs(store: CrystalStore, recipe: NeighborRecipe) -> GraphArrays:
    """Graphs of all crystals of a store, memory-mapped from a cache that is made on first use.

    The cache is named by the content hash of the store, the recipe and the layout of the files, so it cannot be
    stale: other content, another recipe or another layout is another folder. It lies in the store's own folder;
    where that cannot be written, in the system's temporary folder.
    """
    key = json.dumps([store.content_hash, recipe.key, LAYOUT])
    name = hashlib.sha256(key.encode()).hexdigest()[:24]
    place = store.path / "graphs" / name
    if not place.is_dir():
        if not is_writable(place.parent):
            place = Path(tempfile.gettempdir()) / f"foundation-graphs-{os.getuid()}" / name
        if not place.is_dir():
            _write_cache(place, store, recipe)
    # As plain arrays: every operation on numpy's own class of mapped arrays costs microseconds more.
    num_edges, sender, receiver, shift, cutoff = (
        np.asarray(np.load(place / f"{array}.npy", mmap_mode="r")) for array in _ARRAYS
    )
    edge_ptr = np.concatenate([[0], np.cumsum(num_edges, dtype=np.int64)])
    return GraphArrays(
        store.ptr, edge_ptr, store.numbers, store.frac_coords, store.lattices, sender, receiver, shift, cutoff
    )


def is_writable(folder: Path) -> bool:
    """Whether a cache can be written here; the folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _write_cache(place: Path, store: CrystalStore, recipe: NeighborRecipe) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=".writing-"))
    try:
        progress = tqdm(_crystals(store), total=len(store), desc="graphs", unit=" crystals", disable=None, delay=2)
        crystals = iter(progress)
        count = 0
        # Every chunk is a part of its own, so that memory does not grow with the store; an empty store has one too.
        while count == 0 or count * CHUNK < len(store):
            graphs = build_graphs(islice(crystals, CHUNK), recipe)
            for array in _ARRAYS:
                np.save(temporary / f"{array}.{count}.npy", getattr(graphs, array))
            count += 1
        for array in _ARRAYS:
            _join(temporary, array, count)
        os.rename(temporary, place)
    except OSError:
        # Another process was first: its cache holds the same content.
        if not place.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _join(folder: Path, array: str, count: int) -> None:
    """Put the parts of an array one after another, in the smallest type that holds them all."""
    paths = [folder / f"{array}.{number}.npy" for number in range(count)]
    parts = [np.load(path, mmap_mode="r") for path in paths]
    shape = (sum(len(part) for part in parts), *parts[0].shape[1:])
    whole = np.lib.format.open_memmap(folder / f"{array}.npy", "w+", np.result_type(*parts), shape)
    start = 0
    for part, path in zip(parts, paths, strict=True):
        whole[start : start + len(part)] = part
        start += len(part)
        path.unlink()
    whole.flush()


def _crystals(store: CrystalStore) -> Iterator[Crystal]:
    """Without their ids, which would all be held in memory."""
    for row, (start, stop) in enumerate(zip(store.ptr[:-1], store.ptr[1:], strict=True)):
        numbers = store.numbers[start:stop].astype(np.int64)
        yield Crystal(store.lattices[row], store.frac_coords[start:stop], numbers)
