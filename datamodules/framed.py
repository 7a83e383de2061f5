"""Labels with a shape that the vocabulary knows: brought to it, and held against the symmetry of their crystal."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from datamodules.crystals import Crystal
from datamodules.point_group import point_group_residual
from datamodules.properties import Property, parse_grid
from datamodules.readers import Label
from datamodules.tensors import index_residual, rank_of, to_full

Asymmetric = Literal["reject", "downweight", "keep"]
GRID = "_grid"  # behind the name of a spectrum: its own bins, where a record states them
_INDEX_TOLERANCE = 0.05  # of the largest component: rounded tables are not exactly symmetric
_GRID_TOLERANCE = 1e-3  # of the width of a bin


@dataclass(frozen=True)
class Prepared:
    """What became of a label.

    Attributes:
        label: As it is stored.
        reason: None, or why it is refused.
        detail: What exactly is wrong, for the person who has to mend it.
        weight: How much it counts; 1 for one that its crystal's symmetry allows.
    """

    label: Label
    reason: str | None = None
    detail: str = ""
    weight: float = 1.0


def prepare_label(
    property: Property, label: Label, crystal: Crystal, tolerance: float, asymmetric: Asymmetric, grid: Label = None
) -> Prepared:
    """Bring a label to the shape of its property, and check it.

    Args:
        property: What it is a label of.
        label: A list, as a source gives it.
        crystal: The crystal, in the frame of the label.
        tolerance: How far a tensor may be from its mean over the crystal's space group, relative to its largest
            component.
        asymmetric: What becomes of one that is further.
        grid: The bins that the record states, for a spectrum.

    Returns:
        The label, or the reason why it is refused: "wrong_shape", "wrong_length", "other_grid", "not_symmetric" (in its
        indices), "breaks_point_group".
    """
    if property.kind == "spectrum" and property.grid:
        return _on_grid(property, label, grid)
    if not property.formula:
        return Prepared(label)
    rank, per_atom = rank_of(property.formula), property.level == "atom"
    if per_atom and (not isinstance(label, list) or len(label) != len(crystal)):
        found = len(label) if isinstance(label, list) else 0
        return Prepared(label, "wrong_length", f"{found} entries for {len(crystal)} atoms")
    tensor = _tensor(label, rank, per_atom)
    if tensor is None:
        return Prepared(label, "wrong_shape", f"a tensor {property.formula} has the shape {(3,) * rank}")
    if np.isinf(tensor).any() or (np.isnan(tensor).any() and not per_atom):
        return Prepared(label, "nonfinite_label")
    plain: Label = np.where(np.isnan(tensor), np.array(None), tensor).tolist()
    there = tensor[~np.isnan(tensor).any(axis=tuple(range(1, rank + 1)))] if per_atom else tensor
    if not len(there):
        return Prepared(plain)
    off = index_residual(there, property.formula)
    if off > _INDEX_TOLERANCE:
        return Prepared(plain, "not_symmetric", f"is off {property.formula} by {off:.2g} of its largest component")
    if asymmetric == "keep":
        return Prepared(plain)
    off = point_group_residual(tensor, crystal, rank, per_atom)
    if off <= tolerance:
        return Prepared(plain)
    if asymmetric == "downweight":
        return Prepared(plain, weight=tolerance / off)
    return Prepared(plain, "breaks_point_group", f"is off the crystal's symmetry by {off:.2g} of its largest component")


def _on_grid(property: Property, label: Label, grid: Label) -> Prepared:
    wanted = parse_grid(property.grid)[0]
    if not isinstance(label, list) or len(label) != len(wanted):
        found = len(label) if isinstance(label, list) else 1
        return Prepared(label, "other_grid", f"{found} bins, the grid is {property.grid}")
    if any(isinstance(value, list) for value in label):
        return Prepared(label, "wrong_shape", f"a bin of a spectrum is one number, the grid is {property.grid}")
    if None in label:
        return Prepared(label, "nonfinite_label", f"bin {label.index(None)} is null")
    if isinstance(grid, list):
        width = wanted[1] - wanted[0]
        if len(grid) != len(wanted) or np.abs(np.array(grid, dtype=float) - wanted).max() > _GRID_TOLERANCE * width:
            return Prepared(label, "other_grid", f"bins {grid[0]:g} to {grid[-1]:g}, the grid is {property.grid}")
    return Prepared(label)


def _tensor(label: Label, rank: int, per_atom: bool) -> npt.NDArray[np.float64] | None:
    """The label in full, NaN for an atom that has none; None if it has another shape."""
    entries: list[Any] = label if per_atom and isinstance(label, list) else [label]
    full = []
    for entry in entries:
        try:
            values = np.full((3,) * rank, np.nan) if entry is None else np.array(entry, dtype=np.float64)
        except (TypeError, ValueError):  # ragged
            return None
        whole = to_full(values, rank)
        if whole is None or whole.shape != (3,) * rank:
            return None
        full.append(whole)
    return np.stack(full) if per_atom else full[0]
