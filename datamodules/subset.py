"""A store of some crystals of another store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.exclusion import excluded_rows
from datamodules.store import CrystalStore, write_store


def write_subset(
    store: CrystalStore,
    out: Path,
    names: Sequence[str],
    exclude: Sequence[str] = (),
    size: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the crystals with one of these labels whose formula stands in none of the places.

    Args:
        store: Where they are taken from.
        out: The store to write; one that stands there is replaced.
        names: Properties; only these are written.
        exclude: Places of crystals to leave out by reduced formula, see ``datamodules.exclusion``.
        size: How many crystals; None takes all. Smaller sets of the same seed are parts of larger ones.
        seed: Seed of the choice.

    Returns:
        The manifest.

    Raises:
        InputError: If the store lacks a property, or there are fewer crystals than asked for.
    """
    missing = [name for name in names if name not in store.properties]
    if missing:
        raise InputError(f"{store.path}: no property {missing[0]!r}; it has {', '.join(store.properties)}")
    columns = {name: store.nested(name) for name in names}
    labelled = np.array([any(value is not None for value in row) for row in zip(*columns.values(), strict=True)])
    rows = np.flatnonzero(labelled)
    out_of_it = excluded_rows(store, rows, exclude, "formula") if exclude else np.zeros(len(rows), dtype=bool)
    rows = _chosen(rows[~out_of_it], size, seed, out)
    return write_store(
        out,
        [store.crystal(int(row)) for row in rows],
        {name: [column[row] for row in rows] for name, column in columns.items()},
        [store.properties[name] for name in names],
        source_ids=[store.source_ids[row] for row in rows],
        extra={"counts": {"excluded": int(out_of_it.sum())}, "sources": store.manifest.get("sources", [])},
        overwrite=True,
    )


def _chosen(rows: npt.NDArray[np.int64], size: int | None, seed: int, out: Path) -> npt.NDArray[np.int64]:
    if size is not None and size > len(rows):
        raise InputError(f"{out.name}: {size:,} crystals are asked for, and there are {len(rows):,}")
    order = np.random.default_rng(seed).permutation(len(rows))
    return np.sort(rows[order[:size]])
