"""Ordered structures of the fcc metals: which crystals the embedded data set starts from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
from ase import Atoms

# Metals that EMT describes, with Angstrom^3 per atom of the fcc crystal as a first guess.
VOLUMES = {"Ag": 16.8, "Al": 16.0, "Au": 16.8, "Cu": 11.6, "Ni": 10.9, "Pd": 14.6, "Pt": 15.0}
ELEMENTS = tuple(sorted(VOLUMES))

_Vectors = tuple[tuple[float, float, float], ...]


@dataclass(frozen=True)
class Prototype:
    """A decorated cell of any length unit; `Start.atoms` scales it.

    Attributes:
        name: Strukturbericht symbol or, where there is none, the usual name.
        cell: Three cell vectors.
        sites: Fractional coordinates of the N sites.
        species: One letter a site, "A", "B" or "C".
    """

    name: str
    cell: _Vectors
    sites: _Vectors
    species: str


@dataclass(frozen=True)
class Start:
    """A prototype with its letters replaced by elements: one crystal to relax.

    Attributes:
        prototype: The structure.
        elements: Element symbols in the order of the letters A, B, C.
    """

    prototype: Prototype
    elements: tuple[str, ...]

    @property
    def id(self) -> str:
        """Formula and prototype, such as ``Cu3Au-L12``."""
        letters = self.prototype.species
        counts = [(element, letters.count("ABC"[k])) for k, element in enumerate(self.elements)]
        shared = int(np.gcd.reduce([count for _, count in counts]))
        formula = "".join(f"{element}{count // shared if count > shared else ''}" for element, count in counts)
        return f"{formula}-{self.prototype.name}"

    @property
    def system(self) -> str:
        """The elements in alphabetical order, such as ``Au-Cu``."""
        return "-".join(sorted(self.elements))

    def atoms(self) -> Atoms:
        """The crystal at the volume that its elements' own volumes add up to (Vegard's rule)."""
        symbols = [self.elements["ABC".index(letter)] for letter in self.prototype.species]
        cell = np.array(self.prototype.cell)
        scale = (sum(VOLUMES[s] for s in symbols) / abs(np.linalg.det(cell))) ** (1 / 3)
        options: dict[str, Any] = {"cell": cell * scale, "scaled_positions": self.prototype.sites, "pbc": True}
        return Atoms(symbols, **options)


# Two vectors in a lattice plane and the one to the next plane, in half cube edges of fcc.
_PLANES = {
    "001": ((1, 1, 0), (1, -1, 0), (1, 0, 1)),
    "110": ((0, 0, 2), (1, -1, 0), (1, 0, 1)),
    "111": ((1, -1, 0), (0, 1, -1), (1, 1, 0)),
    "210": ((0, 0, 2), (2, -1, 1), (1, 0, 1)),
}


def _stack(name: str, plane: str, species: str) -> Prototype:
    """The fcc superlattice whose successive lattice planes hold one species each."""
    first, second, up = _PLANES[plane]
    height = len(species)
    cell = (first, second, (height * up[0], height * up[1], height * up[2]))
    return Prototype(name, cell, tuple((0.0, 0.0, k / height) for k in range(height)), species)


_SQRT3, _C = 3**0.5, (8 / 3) ** 0.5  # hexagonal geometry; ideal c/a
_CUBE = ((1, 0, 0), (0, 1, 0), (0, 0, 1))
_FACES = ((0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5))
_FCC = ((0, 0.5, 0.5), (0.5, 0, 0.5), (0.5, 0.5, 0))
_DIAGONAL = ((0, 0, 0), (0.25, 0.25, 0.25), (0.5, 0.5, 0.5), (0.75, 0.75, 0.75))  # bcc sites in the cell _FCC
_HEX = ((1, 0, 0), (-0.5, _SQRT3 / 2, 0), (0, 0, _C))
_HEX_PAIR = ((0, 0, 0), (1 / 3, 2 / 3, 0.5))
_HEX_2X2 = tuple(((x + i) / 2, (y + j) / 2, z) for x, y, z in _HEX_PAIR for i in (0, 1) for j in (0, 1))

_ELEMENTAL = (
    Prototype("A1", _FCC, ((0, 0, 0),), "A"),
    Prototype("A2", ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), ((0, 0, 0),), "A"),
    Prototype("A3", _HEX, _HEX_PAIR, "AA"),
)
# One for each pair of metals.
_EQUIATOMIC = (
    _stack("L10", "001", "AB"),
    _stack("L11", "111", "AB"),
    _stack("Z2", "001", "AABB"),
    Prototype("B2", _CUBE, ((0, 0, 0), (0.5, 0.5, 0.5)), "AB"),
    Prototype("B32", _FCC, _DIAGONAL, "AABB"),
    _stack("40", "210", "AABB"),  # after B32, into which it can relax
    Prototype("Bh", _HEX, _HEX_PAIR, "AB"),
    Prototype(
        "B19",
        ((1, 0, 0), (0, _SQRT3, 0), (0, 0, _C)),
        ((0, 0, 0), (0.5, 0.5, 0), (0, 2 / 3, 0.5), (0.5, 1 / 6, 0.5)),
        "ABAB",
    ),
)
# Two for each pair, one with either metal in the majority.
_UNEQUAL = (
    Prototype("L12", _CUBE, (*_FACES, (0, 0, 0)), "AAAB"),
    _stack("D022", "210", "AAAB"),
    Prototype("D019", ((2, 0, 0), (-1, _SQRT3, 0), (0, 0, _C)), _HEX_2X2, "BAAAAABA"),
    Prototype("D03", _FCC, _DIAGONAL, "BAAA"),
    _stack("C11b", "001", "AAB"),
    _stack("MoPt2", "110", "AAB"),
    _stack("alpha", "111", "AAB"),
    _stack("D1a", "210", "AAAAB"),
)
# Ternaries: once for each choice of the metal in the majority ...
_MAJORITY = (Prototype("L12-ABC2", _CUBE, (*_FACES[1:], _FACES[0], (0, 0, 0)), "AABC"),)
# ... and once for each three metals.
_ANY_ORDER = (
    Prototype("L21", _FCC, _DIAGONAL, "BACA"),
    _stack("ABC-001", "001", "ABC"),
    _stack("ABC-111", "111", "ABC"),
)


def starts() -> Iterator[Start]:
    """Every crystal to relax, always in the same order: 7 metals, 21 binary and 35 ternary systems.

    Prototypes of one composition differ in space group, so that stores that match crystals by formula,
    space group and volume keep them apart.
    """
    for element in ELEMENTS:
        yield from (Start(prototype, (element,)) for prototype in _ELEMENTAL)
    for pair in combinations(ELEMENTS, 2):
        yield from (Start(prototype, pair) for prototype in _EQUIATOMIC)
        yield from (Start(prototype, order) for prototype in _UNEQUAL for order in permutations(pair))
    for a, b, c in combinations(ELEMENTS, 3):
        yield from (Start(p, order) for p in _MAJORITY for order in ((a, b, c), (b, a, c), (c, a, b)))
        # The middle one leads: of the three it varies most from one choice of metals to the next.
        yield from (Start(prototype, (b, a, c)) for prototype in _ANY_ORDER)
