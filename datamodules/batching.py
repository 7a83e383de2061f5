"""Graphs of many crystals as a few flat arrays, and batches gathered from them.

Only what costs time to find is kept: per edge the two atoms' indices inside their crystal and the lattice
translation, per atom the cutoff. Vectors are made of them for a whole batch at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from datamodules.crystals import Crystal
from datamodules.graph import NeighborRecipe, neighbor_list

Ints = npt.NDArray[np.int64]


class CrystalBatch(Data):  # type: ignore[misc]
    """B crystals with N atoms and E edges in all.

    Attributes:
        z: [N] atomic numbers.
        batch: [N] crystal of each atom.
        num_atoms: [B] atoms per crystal.
        edge_index: [2, E] sender and receiver, sorted by receiver.
        edge_vector: [E, 3] from receiver to sender's image, Angstrom.
        cutoff: [N] Angstrom.
        row: [B] row of each crystal in its store or list.
        labels: [B, P] in physical units, NaN where missing; present in training and evaluation.
    """


@dataclass(frozen=True)
class GraphArrays:
    """Crystals and their edges, concatenated.

    Attributes:
        atom_ptr: [M + 1] first atom of each crystal.
        edge_ptr: [M + 1] first edge of each crystal.
        numbers: [sum N] atomic numbers.
        frac_coords: [sum N, 3].
        lattices: [M, 3, 3].
        sender: [sum E] index inside the crystal.
        receiver: [sum E] index inside the crystal.
        shift: [sum E, 3].
        cutoff: [sum N].
    """

    atom_ptr: Ints
    edge_ptr: Ints
    numbers: npt.NDArray[np.integer]
    frac_coords: npt.NDArray[np.float64]
    lattices: npt.NDArray[np.float64]
    sender: npt.NDArray[np.integer]
    receiver: npt.NDArray[np.integer]
    shift: npt.NDArray[np.integer]
    cutoff: npt.NDArray[np.floating]

    def __len__(self) -> int:
        return len(self.atom_ptr) - 1

    @property
    def num_edges(self) -> Ints:
        """[M] edges per crystal."""
        return np.diff(self.edge_ptr)

    def edges_per_atom(self, row: int) -> Ints:
        """[N] how many neighbours each atom of one crystal has."""
        edges = self.receiver[self.edge_ptr[row] : self.edge_ptr[row + 1]]
        size = int(self.atom_ptr[row + 1] - self.atom_ptr[row])
        return np.bincount(edges, minlength=size).astype(np.int64)

    def gather(self, rows: Sequence[int] | Ints, labels: Tensor | None = None) -> CrystalBatch:
        """The crystals of the given rows as one batch.

        Args:
            rows: [B] rows.
            labels: [B, P] labels of these rows, if wanted.
        """
        rows = np.asarray(rows, dtype=np.int64)
        atoms, num_atoms = _ragged(self.atom_ptr, rows)
        batch = self._of_atoms(rows, atoms, num_atoms)
        edges, num_edges = _ragged(self.edge_ptr, rows)
        offset = np.repeat(np.cumsum(num_atoms) - num_atoms, num_edges)
        sender = self.sender[edges] + offset
        receiver = self.receiver[edges] + offset
        frac = self.frac_coords[atoms]
        crystal_of_edge = np.repeat(np.arange(len(rows)), num_edges)
        difference = frac[sender] + self.shift[edges] - frac[receiver]
        vector = np.einsum("ej,ejk->ek", difference, self.lattices[rows][crystal_of_edge])
        batch.edge_index = torch.from_numpy(np.stack([sender, receiver]))
        batch.edge_vector = torch.from_numpy(vector).to(torch.get_default_dtype())
        batch.cutoff = torch.from_numpy(np.asarray(self.cutoff[atoms], np.float64)).to(torch.get_default_dtype())
        if labels is not None:
            batch.labels = labels
        return batch

    def gather_atoms(self, rows: Sequence[int] | Ints) -> CrystalBatch:
        """The same without edges and labels: what statistics over a whole training set need."""
        rows = np.asarray(rows, dtype=np.int64)
        return self._of_atoms(rows, *_ragged(self.atom_ptr, rows))

    def _of_atoms(self, rows: Ints, atoms: Ints, num_atoms: Ints) -> CrystalBatch:
        return CrystalBatch(
            z=torch.from_numpy(self.numbers[atoms].astype(np.int64)),
            batch=torch.from_numpy(np.repeat(np.arange(len(rows)), num_atoms)),
            num_atoms=torch.from_numpy(num_atoms),
            row=torch.from_numpy(rows),
        )


def _ragged(ptr: Ints, rows: Ints) -> tuple[Ints, Ints]:
    """Indices of all elements of the given rows of a ragged array, and how many each row has."""
    counts = ptr[rows + 1] - ptr[rows]
    starts = np.repeat(ptr[rows] - (np.cumsum(counts) - counts), counts)
    return starts + np.arange(len(starts)), counts


def structure_to_graph(crystal: Crystal, recipe: NeighborRecipe | None = None) -> CrystalBatch:
    """One crystal as a batch of one."""
    return build_graphs([crystal], recipe or NeighborRecipe()).gather([0])


def build_graphs(crystals: Iterable[Crystal], recipe: NeighborRecipe) -> GraphArrays:
    """Find the edges of every crystal and concatenate them."""
    crystals = list(crystals)
    lists = [neighbor_list(crystal, recipe) for crystal in crystals]
    return GraphArrays(
        atom_ptr=_pointers([len(crystal) for crystal in crystals]),
        edge_ptr=_pointers([len(edges.sender) for edges in lists]),
        numbers=_joined([crystal.numbers for crystal in crystals], (0,), np.int64),
        frac_coords=_joined([crystal.frac_coords for crystal in crystals], (0, 3), np.float64),
        lattices=np.stack([crystal.lattice for crystal in crystals]) if crystals else np.zeros((0, 3, 3)),
        sender=_joined([edges.sender for edges in lists], (0,), np.int32),
        receiver=_joined([edges.receiver for edges in lists], (0,), np.int32),
        shift=_joined([edges.shift for edges in lists], (0, 3), np.int32),
        cutoff=_joined([edges.cutoff for edges in lists], (0,), np.float64),
    )


def _pointers(counts: Sequence[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)


def _joined(parts: Sequence[npt.NDArray[Any]], empty: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(empty, dtype)


_CACHED = ("edge_ptr", "sender", "receiver", "shift", "cutoff")


def cached_graphs(
    folder: Path,
    content_hash: str,
    recipe: NeighborRecipe,
    crystals: Callable[[], Iterable[Crystal]],
    static: dict[str, npt.NDArray[np.generic]],
) -> GraphArrays:
    """Graphs of a whole store, memory-mapped from a cache that is made on first use.

    The cache is named by the content hash of the store and the recipe, so it cannot be stale: other content
    or another recipe is another folder.

    Args:
        folder: Where caches live; where it cannot be written, the system's temporary folder is used.
        content_hash: Hash of the store's content.
        recipe: The neighbour recipe.
        crystals: Gives the store's crystals in order; called only when there is no cache yet.
        static: The store's own ``atom_ptr``, ``numbers``, ``frac_coords`` and ``lattices``.
    """
    name = hashlib.sha256(json.dumps([content_hash, recipe.key]).encode()).hexdigest()[:24]
    place = folder / name
    if not place.is_dir():
        fallback = Path(tempfile.gettempdir()) / f"foundation-graphs-{os.getuid()}"
        if not _writable(folder):
            folder = fallback
            place = folder / name
    if not place.is_dir():
        _write_cache(place, build_graphs(crystals(), recipe))
    arrays = {key: np.load(place / f"{key}.npy", mmap_mode="r") for key in _CACHED}
    return GraphArrays(**arrays, **static)  # type: ignore[arg-type]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _write_cache(place: Path, graphs: GraphArrays) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=".writing-"))
    try:
        for key in _CACHED:
            np.save(temporary / f"{key}.npy", getattr(graphs, key))
        os.rename(temporary, place)
    except OSError:
        # Another process was first: its cache holds the same content.
        if not place.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
