"""Cartesian tensors as labels: their shapes and the symmetry of their indices.

A tensor is stored in full, ``[3] * rank``, in the Cartesian frame of its structure's lattice vectors. Sources may
give rank 2 to 4 in Voigt notation, in the order xx, yy, zz, yz, xz, xy and without factors: that of stiffnesses (GPa)
and of piezoelectric stress constants (C/m^2), not that of compliances. Nine numbers in a row are a rank-2 tensor, row
by row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError

Array = npt.NDArray[np.float64]
VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
_PLACE = np.array([[VOIGT.index((min(i, j), max(i, j))) for j in range(3)] for i in range(3)])
_LETTERS = "ijklmn"


def index_symmetries(formula: str) -> list[tuple[int, tuple[int, ...]]]:
    """Signs and permutations of the indices under which a tensor stays the same.

    Args:
        formula: Such as "ij=ji" or "ijk=-jik"; the first term names the indices, so "ij" has no symmetry.

    Raises:
        InputError: If the formula cannot be parsed.
    """
    first, *others = formula.split("=")
    if not 1 <= len(first) <= 4 or len(set(first)) < len(first) or not set(first) <= set(_LETTERS):
        raise InputError(f"formula {formula!r}: write up to four different indices, such as ij=ji or ijkl=jikl=klij")
    found = []
    for term in others:
        letters = term.removeprefix("-")
        if sorted(letters) != sorted(first):
            raise InputError(f"formula {formula!r}: {term!r} is not a permutation of {first!r}, as in ij=ji")
        found.append((-1 if term.startswith("-") else 1, tuple(first.index(letter) for letter in letters)))
    return found


def index_group(formula: str) -> set[tuple[int, tuple[int, ...]]]:
    """All that follows from a formula, by whichever of its equivalents it is written: the group of what it names.

    Raises:
        InputError: If the formula cannot be parsed.
    """
    named = index_symmetries(formula)
    identity = (1, tuple(range(rank_of(formula))))
    found, fresh = {identity}, [identity]
    while fresh:
        sign, order = fresh.pop()
        made = {(sign * other, tuple(order[place] for place in permutation)) for other, permutation in named} - found
        found |= made
        fresh += made
    return found


def rank_of(formula: str) -> int:
    """The number of indices.

    Raises:
        InputError: If the formula cannot be parsed.
    """
    index_symmetries(formula)
    return len(formula.partition("=")[0])


def to_full(values: Array, rank: int) -> Array | None:
    """[..., full, Voigt or flat shape] -> [..., 3, 3, ...]; None for another shape."""
    full = (3,) * rank
    if values.shape[-rank:] == full:
        return values
    if rank == 2 and values.shape[-1:] == (9,):
        return values.reshape(*values.shape[:-1], 3, 3)
    if rank == 2 and values.shape[-1:] == (6,):
        return np.asarray(values[..., _PLACE])
    if rank == 3 and values.shape[-2:] == (3, 6):
        return np.asarray(values[..., _PLACE])
    if rank == 4 and values.shape[-2:] == (6, 6):
        return np.asarray(values[..., _PLACE[:, :, None, None], _PLACE[None, None]])
    return None


def to_voigt(values: Array, rank: int) -> Array:
    """[..., 3, 3, ...] -> [..., 6], [..., 3, 6] or [..., 6, 6], by the convention at the head of this file."""
    i, j = np.array(VOIGT).T
    if rank == 2:
        return np.asarray(values[..., i, j])
    if rank == 3:
        return np.asarray(values[..., :, i, j])
    return np.asarray(values[..., i[:, None], j[:, None], i[None], j[None]])


def has_voigt(formula: str) -> bool:
    """Whether the index symmetry is one that Voigt notation can hold."""
    symmetries = {permutation for sign, permutation in index_group(formula) if sign == 1}
    needed: dict[int, set[tuple[int, ...]]] = {2: {(1, 0)}, 3: {(0, 2, 1)}, 4: {(1, 0, 2, 3), (0, 1, 3, 2)}}
    return needed.get(rank_of(formula), {()}) <= symmetries


def index_residual(tensor: Array, formula: str) -> float:
    """How far a tensor [..., 3, 3, ...] is from its index symmetry, relative to its largest component."""
    lead = tensor.ndim - rank_of(formula)
    axes = tuple(range(lead))
    worst = 0.0
    for sign, permutation in index_symmetries(formula):
        other = sign * tensor.transpose(*axes, *(lead + place for place in permutation))
        worst = max(worst, float(np.abs(tensor - other).max()))
    return worst / max(float(np.abs(tensor).max()), 1e-12)


def rotated(tensor: Array, rotation: Array, rank: int) -> Array:
    """A tensor [..., 3, 3, ...] in a frame turned by a rotation [3, 3], proper or not."""
    lead = tensor.ndim - rank
    for axis in range(lead, tensor.ndim):
        tensor = np.moveaxis(np.tensordot(rotation, tensor, axes=([1], [axis])), 0, axis)
    return tensor
