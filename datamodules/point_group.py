"""What the symmetry of a crystal leaves of a tensor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import spglib

from datamodules.crystals import Crystal
from datamodules.matching import SYMPREC
from datamodules.tensors import Array, rotated


def symmetry_operations(crystal: Crystal) -> Iterator[tuple[Array, npt.NDArray[np.int64]]]:
    """Every operation of the space group: its Cartesian matrix [3, 3], and [N] where it takes each atom."""
    cell: Any = (crystal.lattice, crystal.frac_coords, crystal.numbers)
    try:
        found = spglib.get_symmetry(cell, symprec=SYMPREC)
    except spglib.SpglibError:
        found = None
    if found is None:
        return
    columns = crystal.lattice.T
    for rotation, translation in zip(found["rotations"], found["translations"], strict=True):
        moved = crystal.frac_coords @ rotation.T + translation
        steps = moved[:, None] - crystal.frac_coords[None]
        steps = (steps - np.round(steps)) @ crystal.lattice
        distance = np.linalg.norm(steps, axis=2)
        distance[crystal.numbers[:, None] != crystal.numbers[None]] = np.inf
        yield columns @ rotation @ np.linalg.inv(columns), distance.argmin(axis=1)


def symmetrized(tensor: Array, crystal: Crystal, rank: int, per_atom: bool) -> Array:
    """The mean of a tensor over the crystal's space group.

    Args:
        tensor: [3, 3, ...], or [N, 3, 3, ...] per atom, NaN for an atom without one, which takes that of its likes.
        crystal: The crystal, in the frame of the tensor.
        rank: Number of indices.
        per_atom: Whether each atom has one.
    """
    total, count = np.zeros_like(tensor), np.zeros(len(tensor) if per_atom else 1)
    known = ~np.isnan(tensor).reshape(len(count), -1).any(axis=1)  # [N], or [1]
    done: set[bytes] = set()
    for rotation, target in symmetry_operations(crystal):
        if not per_atom:  # translations do not move the tensor of a crystal
            key = np.round(rotation, 3).tobytes()
            if key in done:
                continue
            done.add(key)
        turned = rotated(tensor, rotation, rank)
        if per_atom:
            np.add.at(total, target[known], turned[known])
            np.add.at(count, target[known], 1)
        else:
            total += turned
            count += 1
    if not count.any():
        return tensor
    with np.errstate(invalid="ignore"):  # an atom without a tensor none of whose likes has one
        mean: Array = total / count.reshape(-1, *[1] * (tensor.ndim - 1))
    return mean


def point_group_residual(tensor: Array, crystal: Crystal, rank: int, per_atom: bool) -> float:
    """max|T - T_sym| / max|T|, where T_sym is the mean over the space group; 0 for a tensor of zeros, or none."""
    largest = float(np.abs(np.nan_to_num(tensor)).max())
    if largest == 0:
        return 0.0
    return float(np.abs(np.nan_to_num(tensor - symmetrized(tensor, crystal, rank, per_atom))).max()) / largest
