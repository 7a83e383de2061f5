"""The graphs of a whole store, found once and memory-mapped from then on.

Everything that batches are gathered from is in the files, pointers and coordinates too: all processes of a machine
share one copy in the system's page cache, and none holds an array of its own that grows with the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datamodules import batching, graph
from datamodules.batching import GraphArrays, build_graphs
from datamodules.cache import kept
from datamodules.crystals import Crystal
from datamodules.graph import NeighborRecipe
from datamodules.store import CrystalStore

CHUNK = 1000  # crystals whose graphs are held in memory while a cache is made
_ARRAYS = ("atom_ptr", "edge_ptr", "numbers", "frac_coords", "lattices", "sender", "receiver", "shift", "cutoff")


def cached_graphs(store: CrystalStore, recipe: NeighborRecipe) -> GraphArrays:
    """Graphs of all crystals of a store, memory-mapped from a cache that is made on first use.

    The cache is named by the store's files, the recipe and the code that makes it, so it cannot be stale: another of
    them is another folder.
    """
    place = kept(store, "graphs", cache_key(recipe), lambda folder: _write(folder, store, recipe))
    # As plain arrays: every operation on numpy's own class of mapped arrays costs microseconds more.
    return GraphArrays(**{array: np.asarray(np.load(place / f"{array}.npy", mmap_mode="r")) for array in _ARRAYS})


def cache_key(recipe: NeighborRecipe) -> list[Any]:
    """What the graphs of a store depend on besides the store."""
    return [recipe.key, CODE]


def code_hash(sources: Iterable[str]) -> str:
    """Hash of what finds neighbours and lays out the files: some of our sources, and pymatgen's version."""
    text = [*(Path(source).read_text(encoding="utf-8") for source in sources), version("pymatgen")]
    return hashlib.sha256("\0".join(text).encode()).hexdigest()[:16]


# Once, on import: a source that changes later is not what this process runs.
CODE = code_hash([graph.__file__, batching.__file__, __file__])


def _write(folder: Path, store: CrystalStore, recipe: NeighborRecipe) -> None:
    progress = tqdm(_crystals(store), total=len(store), desc="graphs", unit=" crystals", disable=None, delay=2)
    crystals = iter(progress)
    count = 0
    # Every chunk is a part of its own, so that memory does not grow with the store; an empty store has one too.
    while count == 0 or count * CHUNK < len(store):
        graphs = build_graphs(islice(crystals, CHUNK), recipe)
        for array in _ARRAYS:
            np.save(folder / f"{array}.{count}.npy", getattr(graphs, array))
        count += 1
    for array in _ARRAYS:
        _join(folder, array, [folder / f"{array}.{number}.npy" for number in range(count)])


def _join(folder: Path, array: str, paths: list[Path]) -> None:
    """Put the parts of an array one after another, in the smallest type that holds them all.

    Pointers begin at 0 in every part, and the last of one is the first of the next.
    """
    shared = int(array.endswith("_ptr"))
    heads = [(part.shape, part.dtype) for part in (np.load(path, mmap_mode="r") for path in paths)]
    size = shared + sum(shape[0] - shared for shape, _ in heads)
    dtype = np.result_type(*(dtype for _, dtype in heads))
    whole = np.lib.format.open_memmap(folder / f"{array}.npy", "w+", dtype, (size, *heads[0][0][1:]))
    start = 0
    for path in paths:
        part = np.load(path)
        whole[start : start + len(part)] = part + whole[start] if shared else part
        start += len(part) - shared
        path.unlink()
    whole.flush()


def _crystals(store: CrystalStore) -> Iterator[Crystal]:
    """Shard by shard, without their ids, which would all be held in memory."""
    for _, block in store.blocks():
        for row, (start, stop) in enumerate(pairwise(block.ptr)):
            numbers = block.numbers[start:stop].astype(np.int64)
            yield Crystal(block.lattices[row], block.frac_coords[start:stop], numbers)
