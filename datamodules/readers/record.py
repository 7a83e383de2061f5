"""What a reader yields: one structure with its labels, or the reason why it could not be read."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import numpy.typing as npt
from ase.data import atomic_numbers

from datamodules.crystals import Crystal
from datamodules.errors import InputError

# A number, a nested list of numbers and nulls, None where the source has none, or the text of a
# cell that should be a number and is not (so that the import can say so).
Label = float | list[Any] | str | None

_NUMBERS = {**atomic_numbers, "D": 1, "T": 1}


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a source.

    Attributes:
        source: Name of the source, see `source_name`.
        index: Position in the source, from 0.
        id: The source's own id, or one made of its file name and position.
        crystal: The structure; None where it could not be read.
        labels: Property name to value.
        units: Property name to the unit which the source declares; absent where it declares none.
        problem: None, or why there is no crystal: "unreadable" or "disordered".
        detail: What exactly went wrong, for the person who has to mend it.
    """

    source: str
    index: int
    id: str
    crystal: Crystal | None
    labels: dict[str, Label] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    problem: str | None = None
    detail: str = ""


def source_name(path: Path) -> str:
    """Name of a source: the file's stem; the parent folder's name for ``data.jsonl.gz`` and the like."""
    path = path.resolve()
    stem = bare_name(path) if path.is_file() else path.name
    return path.parent.name if stem == "data" else stem


def bare_name(path: Path) -> str:
    """File name without its extension, ``.gz`` included."""
    name = path.name.removesuffix(".gz")
    return Path(name).stem


def read_bytes(path: Path) -> bytes:
    """Content of a file, decompressed where it ends in ``.gz``.

    Raises:
        InputError: If the file cannot be read or its compression is torn.
    """
    with opened(path) as file:
        return file.read()


def read_lines(path: Path) -> Iterator[bytes]:
    """Lines of a file of any size without their ends, decompressed where it ends in ``.gz``.

    Raises:
        InputError: If the file cannot be read or its compression is torn.
    """
    with opened(path) as file:
        for line in file:
            yield line.rstrip(b"\r\n")


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """A file to be read, decompressed where it ends in ``.gz``.

    Raises:
        InputError: If the file cannot be read or its compression is torn, which may show late.
    """
    try:
        with cast("IO[bytes]", gzip.open(path)) if path.name.endswith(".gz") else path.open("rb") as file:
            yield file
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read ({error}); fetch or make the file again") from error


def make_record(
    source: str,
    index: int,
    id: str,
    build: Callable[[], Crystal],
    labels: Mapping[str, Label] | None = None,
    units: Mapping[str, str] | None = None,
) -> Record:
    """A record whose structure is made by ``build``; a failure of it becomes the record's problem."""
    crystal, problem, detail = None, None, ""
    try:
        crystal = build()
    except Exception as error:  # parsers raise whatever they meet in a bad file: that is the finding
        problem = "disordered" if str(error) == "disordered" else "unreadable"
        detail = "" if problem == "disordered" else f"{type(error).__name__}: {error}".splitlines()[0][:200]
    return Record(source, index, id, crystal, dict(labels or {}), dict(units or {}), problem, detail)


def crystal_of_arrays(lattice: Any, coords: Any, symbols: Sequence[str], cartesian: bool, id: str) -> Crystal:
    """Crystal from element symbols and fractional or Cartesian (Angstrom) coordinates.

    An unknown symbol gets the atomic number 0, which the validity check reports.

    Raises:
        ValueError: If the shapes do not agree.
    """
    cell = np.array(lattice, dtype=np.float64)
    frac: npt.NDArray[np.float64] = np.array(coords, dtype=np.float64).reshape(len(coords), 3)
    if cell.shape != (3, 3) or len(frac) != len(symbols):
        raise ValueError(f"lattice {cell.shape}, {len(frac)} positions, {len(symbols)} elements")
    if cartesian:
        frac = np.asarray(np.linalg.solve(cell.T, frac.T).T, dtype=np.float64)
    numbers = np.array([_NUMBERS.get(symbol, 0) for symbol in symbols], dtype=np.int64)
    return Crystal(cell, frac, numbers, id)


def as_label(value: Any) -> Label:
    """A value of a source as a label: a number or a nested list of numbers; None for anything else."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, bool | int | float):
        return value
    return value if isinstance(value, list) and value and _is_numeric(value) else None


def _is_numeric(values: list[Any]) -> bool:
    return all(
        _is_numeric(value) if isinstance(value, list) else value is None or type(value) in (int, float)
        for value in values
    )
