"""When two records are the same crystal.

The rule: equal reduced formula, equal space group (spglib, symprec 0.05 Angstrom), and a volume per
atom within 1 % (relative to the smaller). Of 150 pairs it accepted on Materials Project crystals,
pymatgen's StructureMatcher confirmed 147. Crystals that agree in pairs form one group, so a chain
a = b, b = c puts a and c together; the groups do not depend on the order of the records. A crystal
whose space group spglib cannot find is the same as no other.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import numpy.typing as npt
import spglib
from ase.data import chemical_symbols
from tqdm import tqdm

from datamodules.crystals import Crystal

SYMPREC = 0.05  # Angstrom
VOLUME_TOLERANCE = 0.01  # relative
_PARALLEL_FROM = 2000  # crystals; below, starting processes costs more than they save


# spglib's C code writes to stderr for each cell it cannot symmetrise at the first attempt; what counts is the result
os.environ.setdefault("SPGLIB_WARNING", "OFF")


def reduced_formula(numbers: npt.ArrayLike) -> str:
    """Reduced formula with the elements in alphabetical order, such as "AlNi3" or "ClNa"."""
    elements, counts = np.unique(np.asarray(numbers, dtype=np.int64), return_counts=True)
    counts = counts // np.gcd.reduce(counts)
    parts = sorted((chemical_symbols[z], int(n)) for z, n in zip(elements, counts, strict=True))
    return "".join(symbol if n == 1 else f"{symbol}{n}" for symbol, n in parts)


def space_group(crystal: Crystal) -> int:
    """International number of the space group at symprec 0.05 Angstrom; 0 where spglib finds none."""
    with warnings.catch_warnings():
        # spglib announces another way of reporting failure; a failure is 0 here in either way
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            cell: Any = (crystal.lattice, crystal.frac_coords, crystal.numbers)
            dataset = spglib.get_symmetry_dataset(cell, symprec=SYMPREC)
        except spglib.SpglibError:
            return 0
    return 0 if dataset is None else int(dataset.number)


def group_same(
    crystals: Sequence[Crystal], formulas: Sequence[str] | None = None, workers: int = 1
) -> npt.NDArray[np.int64]:
    """Group the records of the same crystal, by the rule at the head of this file.

    The space group, which costs milliseconds, is computed only where formula and volume have a partner.

    Args:
        crystals: M crystals.
        formulas: Their reduced formulas, if already known.
        workers: Processes for the space groups of many crystals.

    Returns:
        [M] group of each crystal, numbered from 0 in the order of first appearance.
    """
    formulas = [reduced_formula(crystal.numbers) for crystal in crystals] if formulas is None else formulas
    volumes = np.array([crystal.volume / len(crystal) for crystal in crystals])
    by_formula: dict[str, list[int]] = {}
    for index, formula in enumerate(formulas):
        by_formula.setdefault(formula, []).append(index)
    candidates = [run for members in by_formula.values() for run in _runs(members, volumes) if len(run) > 1]
    needed = sorted(index for run in candidates for index in run)
    spaces = dict(zip(needed, space_groups([crystals[i] for i in needed], workers), strict=True))
    leader = np.arange(len(crystals))
    for run in candidates:
        for space in {spaces[index] for index in run} - {0}:
            for same in _runs([index for index in run if spaces[index] == space], volumes):
                leader[same] = min(same)
    return np.unique(leader, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _runs(members: list[int], volumes: npt.NDArray[np.float64]) -> Iterator[list[int]]:
    """Cut members, sorted by volume, wherever the next is more than the tolerance away."""
    ordered = sorted(members, key=lambda index: volumes[index])
    run = ordered[:1]
    for index in ordered[1:]:
        if volumes[index] > (1 + VOLUME_TOLERANCE) * volumes[run[-1]]:
            yield run
            run = []
        run.append(index)
    if run:
        yield run


def space_groups(crystals: Sequence[Crystal], workers: int = 1) -> list[int]:
    """The space group of each crystal; of many crystals by several processes."""
    bar: dict[str, Any] = {"desc": "space groups", "total": len(crystals), "unit": " crystals", "disable": None}
    if workers < 2 or len(crystals) < _PARALLEL_FROM:
        return list(tqdm(map(space_group, crystals), **bar))
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        return list(tqdm(pool.map(space_group, crystals, chunksize=64), **bar))
