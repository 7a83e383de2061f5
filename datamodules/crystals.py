"""A crystal as plain arrays: what every reader makes and everything later consumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True)
class Crystal:
    """A periodic structure of N atoms.

    Attributes:
        lattice: [3, 3] float64, rows are the lattice vectors in Angstrom.
        frac_coords: [N, 3] float64 fractional coordinates.
        numbers: [N] int64 atomic numbers.
        id: The id of the source it came from.
    """

    lattice: npt.NDArray[np.float64]
    frac_coords: npt.NDArray[np.float64]
    numbers: npt.NDArray[np.int64]
    id: str = ""

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def volume(self) -> float:
        """Cell volume in Angstrom^3."""
        return float(abs(np.linalg.det(self.lattice)))


def as_crystal(structure: Any, id: str = "") -> Crystal:
    """Make a Crystal of a pymatgen Structure, an ASE Atoms object or a Crystal.

    Raises:
        ValueError: "disordered" for partial occupancies, which have no single atomic number.
    """
    if isinstance(structure, Crystal):
        return structure
    if hasattr(structure, "get_atomic_numbers"):  # ase.Atoms
        cell = np.array(structure.cell.array, dtype=np.float64)
        frac = structure.get_scaled_positions(wrap=False)
        numbers = structure.get_atomic_numbers()
    else:  # pymatgen.core.Structure
        if not structure.is_ordered:
            raise ValueError("disordered")
        cell = np.array(structure.lattice.matrix, dtype=np.float64)
        frac = structure.frac_coords
        numbers = [site.specie.Z for site in structure]
    return Crystal(cell, np.asarray(frac, dtype=np.float64), np.asarray(numbers, dtype=np.int64), id)
