"""The units of a reference: how far apart two values are on its scale from -1 to 1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.readers.json_records import loads
from datamodules.readers.record import read_bytes

# Values are rounded in such files; a map that is off by more than this share of the range is not linear.
TOLERANCE = 1e-3


def scaled_per_unit(file: Path, values: npt.NDArray[np.float64]) -> float:
    """By how much the scaled target changes where the value changes by one unit.

    Where records carry both ``target`` and ``value``, and one is linear in the other, the slope is fitted to them.
    Elsewhere the range of the values is taken to be mapped onto [-1, 1].

    Args:
        file: A file of records.
        values: [M] all values of the property, NaN where missing.

    Raises:
        InputError: If all values are equal: there is nothing to learn.
    """
    known = _distinct(file, values)
    pairs = _pairs(file)
    if len(pairs) >= 2 and np.ptp(pairs[:, 0]) > 0 and np.ptp(pairs[:, 1]) > 0:
        slope, shift = np.polyfit(pairs[:, 0], pairs[:, 1], 1)
        worst = np.abs(slope * pairs[:, 0] + shift - pairs[:, 1]).max()
        if worst <= TOLERANCE * np.ptp(pairs[:, 1]):
            return abs(float(slope))
    return 2.0 / float(known.max() - known.min())


def check_distinct(file: Path) -> None:
    """Raise an InputError if all records carry the same ``value``, before anything is made of them."""
    found = [record["value"] for record in _objects(loads(read_bytes(file))) if "value" in record]
    numbers = [number for number in found if isinstance(number, int | float)]
    if numbers:
        _distinct(file, np.array(numbers, dtype=np.float64))


def _distinct(file: Path, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    known = values[~np.isnan(values)]
    if not len(known) or known.min() == known.max():
        found = f"all {len(known)} values are {known[0]:g}" if len(known) else "no values"
        raise InputError(f"{file}: {found}; a property with one distinct value cannot be learned")
    return known


def _pairs(file: Path) -> npt.NDArray[np.float64]:
    """[K, 2] value and target of the records that carry both."""
    records = loads(read_bytes(file))
    found = [
        (record["value"], record["target"]) for record in _objects(records) if {"value", "target"} <= record.keys()
    ]
    numbers = [pair for pair in found if all(isinstance(number, int | float) for number in pair)]
    array = np.array(numbers, dtype=np.float64).reshape(-1, 2)
    return array[np.isfinite(array).all(axis=1)]


def _objects(records: Any) -> list[dict[str, Any]]:
    return [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []
