"""Which crystals carried which labels, in a dozen bytes a crystal.

A fingerprint is what the rule of ``datamodules.matching`` looks at: a hash of the reduced formula (8 bytes), the space
group (1 byte) and the logarithm of the volume per atom in steps of 0.02 % (2 bytes). The volume is kept as a number and
compared within 1 %, because a hash of a rounded volume tells crystals apart that lie on two sides of an edge.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.matching import VOLUME_TOLERANCE
from datamodules.space_groups import space_groups_of
from datamodules.store import CrystalStore

Rows = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_STEP = 2e-4  # of the logarithm of a volume
_CENTRE = math.log(20.0)  # Angstrom^3 per atom; with two bytes volumes from 0.03 to 14,000 can be told apart
_STEPS_APART = math.ceil(math.log(1 + VOLUME_TOLERANCE) / _STEP)
_LABELS = "labels."


@dataclass(frozen=True)
class Seen:
    """K crystals and which of P properties each was labelled with.

    Attributes:
        names: The P properties.
        formula: [K] int64 hashes of reduced formulas, ascending.
        space_group: [K] uint8; 0 where there is none, which equals no other.
        log_volume: [K] int16, in steps of 2e-4.
        labels: [K, P] whether the crystal carried the label.
        complete: Whether these are all; False where those of an earlier checkpoint are not known.
    """

    names: tuple[str, ...]
    formula: npt.NDArray[np.int64]
    space_group: npt.NDArray[np.uint8]
    log_volume: npt.NDArray[np.int16]
    labels: Flags
    complete: bool = True

    @classmethod
    def nothing(cls, complete: bool = True) -> Seen:
        """No crystal; not ``complete``: no crystal that one knows of."""
        empty = np.zeros(0, dtype=np.int64)
        return cls((), empty, empty.astype(np.uint8), empty.astype(np.int16), np.zeros((0, 0), dtype=bool), complete)

    @classmethod
    def of(cls, store: CrystalStore, rows: Rows, names: Sequence[str], labels: Flags) -> Seen:
        """Some crystals of a store.

        Args:
            store: The store.
            rows: [K] the crystals.
            names: P properties.
            labels: [K, P] whether the crystal carries the label.
        """
        groups = space_groups_of(store, rows)
        return cls.joined([cls(tuple(names), _formula_hashes(store, rows), groups, _log_volumes(store, rows), labels)])

    @classmethod
    def joined(cls, parts: Sequence[Seen]) -> Seen:
        """All crystals of several; one that stands in two of them carries the labels of both."""
        names = tuple(dict.fromkeys(name for part in parts for name in part.names))
        dtype = [("formula", np.int64), ("space_group", np.uint8), ("log_volume", np.int16)]
        keys = np.empty(sum(len(part) for part in parts), dtype=dtype)
        labels = np.zeros((len(keys), len(names)), dtype=bool)
        start = 0
        for part in parts:
            own = slice(start, start + len(part))
            keys["formula"][own], keys["space_group"][own] = part.formula, part.space_group
            keys["log_volume"][own] = part.log_volume
            labels[own, [names.index(name) for name in part.names]] = part.labels
            start += len(part)
        keys, place = np.unique(keys, return_inverse=True)
        merged = np.zeros((len(keys), len(names)), dtype=bool)
        np.logical_or.at(merged, place.reshape(-1), labels)
        complete = all(part.complete for part in parts)
        formula, group, volume = (np.ascontiguousarray(keys[name]) for name, _ in dtype)
        return cls(names, formula, group, volume, merged, complete)

    def __len__(self) -> int:
        return len(self.formula)

    @property
    def counts(self) -> dict[str, int]:
        """Number of crystals per property."""
        return dict(zip(self.names, self.labels.sum(axis=0).tolist(), strict=True))

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Plain arrays for a file; the labels of a property are one bit a crystal."""
        labels = {_LABELS + name: np.packbits(self.labels[:, place]) for place, name in enumerate(self.names)}
        return {
            "formula": self.formula,
            "space_group": self.space_group,
            "log_volume": self.log_volume,
            "complete": np.array([self.complete], dtype=np.uint8),
            **labels,
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> Seen:
        """The inverse of ``arrays``.

        Raises:
            ValueError: If an array is missing or has another length than the others.
        """
        names = tuple(name.removeprefix(_LABELS) for name in arrays if name.startswith(_LABELS))
        try:
            formula, group, volume = (arrays[name] for name in ("formula", "space_group", "log_volume"))
            complete = bool(arrays["complete"][0])
        except (KeyError, IndexError) as error:
            raise ValueError(f"no {error} among the fingerprints") from error
        count = len(formula)
        packed = [arrays[_LABELS + name] for name in names]
        if not len(group) == len(volume) == count or any(len(bits) != (count + 7) // 8 for bits in packed):
            raise ValueError("fingerprints of different lengths")
        labels = np.zeros((count, len(names)), dtype=bool)
        for place, bits in enumerate(packed):
            labels[:, place] = np.unpackbits(bits, count=count)
        return cls(names, formula, group, volume, labels, complete)

    def look_up(self, store: CrystalStore, rows: Rows) -> tuple[Flags, Flags]:
        """Which crystals of a store are among these, and with which labels.

        Args:
            store: The store.
            rows: [N] crystals of it. The space group, which costs milliseconds, is needed only of those whose formula
                and volume have a partner.

        Returns:
            [N, P] by structure and [N, P] by reduced formula, which is the wider of the two.
        """
        hashes, volumes = _formula_hashes(store, rows), _log_volumes(store, rows).astype(np.int64)
        starts, stops = (np.searchsorted(self.formula, hashes, side) for side in ("left", "right"))
        by_structure, by_formula = (np.zeros((len(rows), len(self.names)), dtype=bool) for _ in range(2))
        close: dict[int, Rows] = {}
        for place in np.flatnonzero(stops > starts).tolist():
            partners = np.arange(starts[place], stops[place])
            by_formula[place] = self.labels[partners].any(axis=0)
            apart = np.abs(self.log_volume[partners].astype(np.int64) - volumes[place])
            if (apart <= _STEPS_APART).any():
                close[place] = partners[apart <= _STEPS_APART]
        groups = space_groups_of(store, rows[list(close)]).tolist()
        for (place, partners), group in zip(close.items(), groups, strict=True):
            if group:
                by_structure[place] = self.labels[partners[self.space_group[partners] == group]].any(axis=0)
        return by_structure, by_formula


def _formula_hashes(store: CrystalStore, rows: Rows) -> npt.NDArray[np.int64]:
    codes, formulas = store.formula_codes()
    digests = [hashlib.blake2b(formula.encode(), digest_size=8).digest() for formula in formulas.to_pylist()]
    hashes: npt.NDArray[np.int64] = np.frombuffer(b"".join(digests), dtype="<i8").astype(np.int64)[codes[rows]]
    return hashes


def _log_volumes(store: CrystalStore, rows: Rows) -> npt.NDArray[np.int16]:
    limits = np.iinfo(np.int16)
    volumes = np.empty(len(store), dtype=np.int16)
    for start, block in store.blocks():
        per_atom = np.abs(np.linalg.det(block.lattices)) / np.diff(block.ptr)
        steps = np.round((np.log(np.maximum(per_atom, 1e-9)) - _CENTRE) / _STEP)
        volumes[start : start + len(block)] = np.clip(steps, limits.min, limits.max)
    return volumes[rows]
