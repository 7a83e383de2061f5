"""Whether a crystal makes physical sense: the reasons that import and prediction give for refusing one.

Reasons for a record: "unreadable" and "disordered" come from the readers; "empty", "nonfinite",
"unknown_element", "flat_cell" and "overlapping_atoms" from here.
"""

from __future__ import annotations

import numpy as np
from pymatgen.optimization.neighbors import find_points_in_spheres

from datamodules.crystals import Crystal

MIN_DISTANCE = 0.5  # Angstrom; the shortest real bond, H-H, is 0.74
MIN_VOLUME_PER_ATOM = 0.1  # Angstrom^3
LAST_ELEMENT = 118
_MAX_COORDINATE = 1e6  # cells; beyond it, the position within the cell is lost to rounding
_PERIODIC = np.ones(3, dtype=np.int64)


def problem_of(crystal: Crystal) -> str | None:
    """The reason why a crystal cannot be used, or None for a good one.

    "empty": no atoms; "nonfinite": a lattice or coordinate that is not finite, or is absurdly large;
    "unknown_element": an atomic number outside 1-118; "flat_cell": (almost) no volume;
    "overlapping_atoms": two atoms, images included, closer than 0.5 Angstrom. An isolated atom is good.
    """
    if len(crystal) == 0:
        return "empty"
    if not (np.isfinite(crystal.lattice).all() and np.abs(crystal.lattice).max() < _MAX_COORDINATE):
        return "nonfinite"
    if not np.abs(crystal.frac_coords).max() < _MAX_COORDINATE:  # false for NaN as well
        return "nonfinite"
    if crystal.numbers.min() < 1 or crystal.numbers.max() > LAST_ELEMENT:
        return "unknown_element"
    if crystal.volume < MIN_VOLUME_PER_ATOM * len(crystal):
        return "flat_cell"
    return "overlapping_atoms" if _overlap(crystal) else None


def _overlap(crystal: Crystal) -> bool:
    lattice = np.ascontiguousarray(crystal.lattice, dtype=np.float64)
    positions = np.ascontiguousarray((crystal.frac_coords % 1.0) @ lattice)  # [N, 3]
    # The search divides space into boxes of min_r: one box per atom bounds its memory in large empty cells.
    box = max(1.0, (crystal.volume / len(crystal)) ** (1 / 3))
    first, second, images, _ = find_points_in_spheres(
        positions, positions, r=MIN_DISTANCE, pbc=_PERIODIC, lattice=lattice, tol=1e-8, min_r=box
    )
    itself = (first == second) & (images == 0).all(axis=1)
    return bool((~itself).any())
