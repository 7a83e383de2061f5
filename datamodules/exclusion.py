"""Crystals that must not train: those that stand in a file or a store, by formula or by structure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.matching import VOLUME_TOLERANCE, reduced_formula, space_group
from datamodules.readers import read_source
from datamodules.splits import read_lists
from datamodules.store import CrystalStore, is_store

if TYPE_CHECKING:
    from collections.abc import Iterable

By = Literal["formula", "structure"]


def excluded_rows(
    store: CrystalStore, candidates: npt.NDArray[np.int64], places: Sequence[str], by: By
) -> npt.NDArray[np.bool_]:
    """Which of the candidate rows stand in one of the places.

    Args:
        store: The store the rows belong to.
        candidates: [K] rows to look at.
        places: Stores, structure files, files of id lists, or folders with both (see ``crystals_to_exclude``).
        by: "formula" for an equal reduced formula, "structure" for the same crystal by the rule of
            ``datamodules.matching``.

    Returns:
        [K] True where the row must not train.
    """
    partners: dict[str, list[Crystal]] = {}
    for place in places:
        for crystal in crystals_to_exclude(Path(place)):
            partners.setdefault(reduced_formula(crystal.numbers), []).append(crystal)
    named = store.has_formula(partners)[candidates]
    if by == "formula":
        return named
    spaces: dict[int, int] = {}
    for position in np.flatnonzero(named):
        crystal = store.crystal(int(candidates[position]))
        named[position] = _is_among(crystal, partners[store.formulas[candidates[position]]], spaces)
    return named


def crystals_to_exclude(place: Path) -> Iterator[Crystal]:
    """The crystals that a place stands for.

    A store or a structure file stands for all its crystals. A file of id lists, ``splits/NAME.json`` beside
    ``NAME.json.gz``, stands for its ``test`` and ``test_proxy`` lists; a folder with such a ``splits`` folder
    stands for all of these.

    Raises:
        InputError: If there is nothing there, or nothing readable.
    """
    if not place.exists():
        raise InputError(f"--data.exclude {place}: no such file or folder")
    if is_store(place):
        store = CrystalStore.open(place)
        yield from (store.crystal(row) for row in range(len(store)))
    elif (place / "splits").is_dir():
        for lists in sorted((place / "splits").glob("*.json")):
            yield from _listed(lists)
    elif place.parent.name == "splits":
        yield from _listed(place)
    else:
        yield from _readable(place)


def _listed(lists_file: Path) -> Iterator[Crystal]:
    lists = read_lists(lists_file)
    wanted = {str(identifier) for key in ("test", "test_proxy") for identifier in lists.get(key, [])}
    beside = [lists_file.parent.parent / f"{lists_file.stem}{ending}" for ending in (".json.gz", ".json")]
    found = [path for path in beside if path.is_file()]
    if not found:
        raise InputError(f"--data.exclude {lists_file}: its crystals, {beside[0]}, are not there")
    yield from (crystal for crystal in _readable(found[0]) if crystal.id in wanted)


def _readable(path: Path) -> Iterator[Crystal]:
    count = 0
    for record in read_source(path):
        if record.crystal is not None:
            count += 1
            yield record.crystal
    if not count:
        raise InputError(f"--data.exclude {path}: no readable crystal there")


def _is_among(crystal: Crystal, others: Iterable[Crystal], spaces: dict[int, int]) -> bool:
    volume = crystal.volume / len(crystal)
    close = [
        other
        for other in others
        if max(volume, other.volume / len(other)) <= (1 + VOLUME_TOLERANCE) * min(volume, other.volume / len(other))
    ]
    if not close:
        return False
    own = space_group(crystal)
    for other in close:
        if id(other) not in spaces:
            spaces[id(other)] = space_group(other)
    return own > 0 and any(spaces[id(other)] == own for other in close)
