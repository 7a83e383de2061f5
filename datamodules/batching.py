"""Graphs of many crystals as a few flat arrays, and batches gathered from them.

Only what costs time to find is kept: per edge the two atoms' indices inside their crystal and the lattice
translation, per atom the cutoff. Vectors are made of them for a whole batch at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch_geometric.data import Data

from datamodules.crystals import Crystal
from datamodules.graph import NeighborList, NeighborRecipe, neighbor_list

Ints = npt.NDArray[np.int64]

_INDEX = (np.uint8, np.uint16, np.uint32)  # types of an index inside a crystal, and of a lattice translation
_SHIFT = (np.int8, np.int16, np.int32, np.int64)


class CrystalBatch(Data):  # type: ignore[misc]
    """B crystals with N atoms and E edges in all.

    Attributes:
        z: [N] atomic numbers.
        batch: [N] crystal of each atom.
        num_atoms: [B] atoms per crystal.
        volume: [B] of each crystal's cell, Angstrom^3, in double precision.
        edge_index: [2, E] sender and receiver, sorted by receiver.
        edge_vector: [E, 3] from receiver to sender's image, Angstrom.
        cutoff: [N] Angstrom.
        row: [B] row of each crystal in its store or list.
        labels: [B, P] in physical units, NaN where missing; present in training and evaluation.
        shaped: Property -> [B, ...], or [N, ...] of atoms, in physical units, NaN where missing; only of properties
            with more than one number per crystal, whose column of ``labels`` is 1 where there is one.
        known: Features of the atoms that a frozen part of the encoder has made before; only present if kept.
    """

    def part(self, kept: Tensor) -> tuple[CrystalBatch, Tensor]:
        """Some of the crystals as a batch of their own, and which atoms are theirs.

        Args:
            kept: [B] whether to keep a crystal.

        Returns:
            The batch, without labels of one number and what is known of its atoms, and [N'] the places of its atoms
            among those of this one.
        """
        kept_atoms = kept[self.batch]
        atoms = kept_atoms.nonzero()[:, 0]
        found = CrystalBatch(
            z=self.z[atoms],
            batch=(kept.cumsum(0) - 1)[self.batch[atoms]],
            num_atoms=self.num_atoms[kept],
            volume=self.volume[kept],
            row=self.row[kept],
        )
        if "edge_index" in self:
            edges = kept_atoms[self.edge_index[1]].nonzero()[:, 0]
            found.edge_index = (kept_atoms.cumsum(0) - 1)[self.edge_index[:, edges]]
            found.edge_vector = self.edge_vector[edges]
            found.cutoff = self.cutoff[atoms]
        if "shaped" in self:
            # There are as many atoms as crystals only if each has one, and then both say the same.
            places = {len(kept): kept, len(kept_atoms): kept_atoms}
            found.shaped = {name: label[places[len(label)]] for name, label in self.shaped.items()}
        return found, atoms


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

    def elements(self, rows: Ints, block: int = 100_000) -> list[int]:
        """Atomic numbers that occur in the given rows, ascending, looked at block by block."""
        found = np.zeros(256, dtype=bool)
        for start in range(0, len(rows), block):
            found[self.numbers[_ragged(self.atom_ptr, rows[start : start + block])[0]]] = True
        return list(np.flatnonzero(found).tolist())

    def gather(self, rows: Sequence[int] | Ints, labels: Tensor | None = None) -> CrystalBatch:
        """The crystals of the given rows as one batch.

        Args:
            rows: [B] rows.
            labels: [B, P] labels of these rows, if wanted.
        """
        rows = np.asarray(rows, dtype=np.int64)
        atoms, num_atoms = _ragged(self.atom_ptr, rows)
        edges, num_edges = _ragged(self.edge_ptr, rows)
        first_atom = np.repeat(np.cumsum(num_atoms) - num_atoms, num_edges)  # [E]
        ends = np.empty((2, len(edges)), dtype=np.int64)
        np.add(self.sender.take(edges), first_atom, out=ends[0])
        np.add(self.receiver.take(edges), first_atom, out=ends[1])
        # Components come first, so that every operation runs along the edges, and take() copies several times faster
        # than indexing with an array does.
        frac = np.ascontiguousarray(self.frac_coords.take(atoms, axis=0).T)  # [3, N]
        difference = frac.take(ends[0], axis=1)
        difference += self.shift.take(edges, axis=0).T
        difference -= frac.take(ends[1], axis=1)
        lattices = np.repeat(self.lattices[rows].transpose(1, 2, 0), num_edges, axis=2)  # [3, 3, E]
        vector = np.einsum("je,jke->ke", difference, lattices)
        dtype = torch.get_default_dtype()  # geometry is float64 up to here
        batch = self._of_atoms(rows, atoms, num_atoms, labels)
        batch.edge_index = torch.from_numpy(ends)
        batch.edge_vector = torch.from_numpy(vector).to(dtype).T.contiguous()
        batch.cutoff = torch.from_numpy(self.cutoff.take(atoms)).to(dtype)
        return batch

    def gather_atoms(self, rows: Sequence[int] | Ints, labels: Tensor | None = None) -> CrystalBatch:
        """The same without edges: what statistics over a whole training set need."""
        rows = np.asarray(rows, dtype=np.int64)
        return self._of_atoms(rows, *_ragged(self.atom_ptr, rows), labels)

    def _of_atoms(self, rows: Ints, atoms: Ints, num_atoms: Ints, labels: Tensor | None) -> CrystalBatch:
        batch = CrystalBatch(
            z=torch.from_numpy(self.numbers.take(atoms).astype(np.int64)),
            batch=torch.from_numpy(np.repeat(np.arange(len(rows)), num_atoms)),
            num_atoms=torch.from_numpy(num_atoms),
            volume=torch.from_numpy(np.abs(np.linalg.det(self.lattices[rows]))),
            row=torch.from_numpy(rows),
        )
        if labels is not None:
            batch.labels = labels
        return batch


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
    return join_graphs(crystals, [neighbor_list(crystal, recipe) for crystal in crystals])


def join_graphs(crystals: Sequence[Crystal], lists: Sequence[NeighborList]) -> GraphArrays:
    """Concatenate M crystals and their M neighbour lists, indices in the smallest type that holds them."""
    return GraphArrays(
        atom_ptr=_pointers([len(crystal) for crystal in crystals]),
        edge_ptr=_pointers([len(edges.sender) for edges in lists]),
        numbers=_joined([crystal.numbers for crystal in crystals], (0,), np.int64),
        frac_coords=_joined([crystal.frac_coords for crystal in crystals], (0, 3), np.float64),
        lattices=np.stack([crystal.lattice for crystal in crystals]) if crystals else np.zeros((0, 3, 3)),
        sender=_smallest(_joined([edges.sender for edges in lists], (0,), np.int64), *_INDEX),
        receiver=_smallest(_joined([edges.receiver for edges in lists], (0,), np.int64), *_INDEX),
        shift=_smallest(_joined([edges.shift for edges in lists], (0, 3), np.int64), *_SHIFT),
        cutoff=_joined([edges.cutoff for edges in lists], (0,), np.float64),
    )


def _pointers(counts: Sequence[int]) -> Ints:
    return np.concatenate([[0], np.cumsum(np.asarray(counts, dtype=np.int64))]).astype(np.int64)


def _joined(parts: Sequence[npt.NDArray[Any]], empty: tuple[int, ...], dtype: type) -> npt.NDArray[Any]:
    return np.concatenate(parts).astype(dtype) if parts else np.zeros(empty, dtype)


def _smallest(values: npt.NDArray[np.int64], *types: type[np.integer]) -> npt.NDArray[np.integer]:
    """The same integers in the first of the types that holds them all."""
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    return values.astype(next(kind for kind in types if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max))
