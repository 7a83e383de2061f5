"""Merging: the records of one crystal become one row with several labels.

The merge rule. Sources are read in the order given. The first label of a crystal for a property
wins; a later one is counted as a duplicate, and as a conflict, listed in ``conflicts.csv``, if it
differs by more than 1e-3 of the larger magnitude (and 1e-6). A row's structure and id are those of
its first record, except that a record with tensors or per-atom labels comes before those without,
because such labels hold only in the frame and atom order of their own structure; such a label of a
record with another frame is left out and listed in ``rejected.csv``.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.crystals import Crystal
from datamodules.readers import Label, Record

CONFLICT_RELATIVE = 1e-3
CONFLICT_ABSOLUTE = 1e-6
_SAME_FRAME = 1e-4  # Angstrom and cell fractions


@dataclass
class Merged:
    """M crystals made of records.

    Attributes:
        crystals: [M] structures.
        source_ids: [M] lists of ``source:id``, one for every record of the crystal.
        labels: Property name to M labels, None where there is none.
        duplicates: Labels that came second.
        conflicts: Those of them that differ: (source, index, id, property, value, kept value, kept from).
        other_frames: Records with a label that does not fit the stored structure, and which label.
    """

    crystals: list[Crystal] = field(default_factory=list)
    source_ids: list[list[str]] = field(default_factory=list)
    labels: dict[str, list[Label]] = field(default_factory=dict)
    duplicates: int = 0
    conflicts: list[tuple[Any, ...]] = field(default_factory=list)
    other_frames: list[tuple[Record, str]] = field(default_factory=list)


def merge(records: Sequence[Record], groups: npt.NDArray[np.int64], framed: Collection[str] = ()) -> Merged:
    """Merge records by the rule at the head of this file.

    Args:
        records: Records that have a crystal, in the order of precedence.
        groups: The crystal to which each belongs, numbered from 0 in the order of first appearance.
        framed: Names of the labels that hold only in the frame and atom order of their own structure.
    """
    leads: dict[int, Record] = {}
    for group, record in zip(groups.tolist(), records, strict=True):
        if group not in leads or (_any(framed, record) and not _any(framed, leads[group])):
            leads[group] = record
    merged = Merged([crystal_of(leads[group]) for group in range(len(leads))], [[] for _ in leads])
    owners: dict[tuple[int, str], Record] = {}
    for group, record in zip(groups.tolist(), records, strict=True):
        merged.source_ids[group].append(f"{record.source}:{record.id}")
        for name, label in record.labels.items():
            if name in framed and not _same_frame(crystal_of(record), merged.crystals[group]):
                stored = f"{leads[group].source}:{leads[group].id}"
                merged.other_frames.append((record, f"{name} is in another frame than the stored structure {stored}"))
                continue
            column = merged.labels.setdefault(name, [None] * len(leads))
            if column[group] is None:
                column[group], owners[group, name] = label, record
                continue
            merged.duplicates += 1
            if _differ(column[group], label):
                owner = owners[group, name]
                where = (record.source, record.index, record.id, name)
                merged.conflicts.append((*where, label, column[group], f"{owner.source}:{owner.id}"))
    return merged


def crystal_of(record: Record) -> Crystal:
    """The crystal of a record that has one.

    Raises:
        ValueError: If the record was refused.
    """
    if record.crystal is None:
        raise ValueError(f"record {record.source}:{record.id} has no crystal")
    return record.crystal


def _any(framed: Collection[str], record: Record) -> bool:
    return any(name in framed for name in record.labels)


def _same_frame(a: Crystal, b: Crystal) -> bool:
    if a is b:
        return True
    if not np.array_equal(a.numbers, b.numbers) or not np.allclose(a.lattice, b.lattice, rtol=0, atol=_SAME_FRAME):
        return False
    shift = a.frac_coords - b.frac_coords
    return bool(np.abs(shift - np.round(shift)).max() < _SAME_FRAME)


def _differ(kept: Label, other: Label) -> bool:
    a, b = np.array(kept, dtype=np.float64), np.array(other, dtype=np.float64)
    if a.shape != b.shape or (np.isnan(a) != np.isnan(b)).any():
        return True
    limit = np.maximum(CONFLICT_ABSOLUTE, CONFLICT_RELATIVE * np.maximum(np.abs(a), np.abs(b)))
    return bool((np.abs(a - b) > limit).any())
