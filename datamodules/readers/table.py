"""CSV tables: a column of structures (paths or CIF text) and columns of labels."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from datamodules.crystals import Crystal, as_crystal
from datamodules.errors import InputError
from datamodules.properties import split_heading
from datamodules.readers.record import Label, Record, make_record, opened
from datamodules.readers.structure_files import crystal_of_text, is_structure_file, read_structures

_STRUCTURE_NAMES = ("structure", "cif", "poscar", "path", "file", "filename", "structure_path", "cif_path", "cif_file")
_ID_NAMES = ("id", "jid", "material_id")


def read_csv(path: Path, source: str, structure_column: str | None = None) -> Iterator[Record]:
    """Read a CSV file with a heading; columns of numbers are labels, ``name`` or ``name (unit)``.

    It is gone through twice, a row in memory at a time: which columns hold numbers is known at its end only.

    Args:
        path: The table. Paths in it are relative to its folder.
        source: Name for the records' source.
        structure_column: The column of CIF/POSCAR paths or CIF text; found by name or content if None.

    Raises:
        InputError: If the table is malformed or has no structure column.
    """
    columns = _columns(path)
    where = _find_structures(path, columns, structure_column)
    ids = next((k for k, column in enumerate(columns) if column.name.lower() in _ID_NAMES), None)
    headings = {
        k: _heading(column.name) for k, column in enumerate(columns) if k not in (where, ids) and column.is_numeric
    }
    names = [name for name, _ in headings.values()]
    if len(set(names)) < len(names):
        raise InputError(f"{path}: two columns have the same name; the columns are {_named(columns)}")
    units = {name: unit for name, unit in headings.values() if unit is not None}
    for index, row in enumerate(islice(_rows(path), 1, None)):
        cell = row[where].strip()
        id = (row[ids].strip() if ids is not None else "") or (cell if "\n" not in cell else str(index))
        labels = {name: _number(row[k]) for k, (name, _) in headings.items()}
        yield make_record(source, index, id, partial(_crystal_of_cell, path.parent, cell, id), labels, units)


@dataclass
class _Column:
    """What a column holds.

    Attributes:
        name: Its heading.
        first: Its first filled cell.
        filled: Cells that are not empty.
        numbers: Those of them that are numbers.
    """

    name: str
    first: str = ""
    filled: int = 0
    numbers: int = 0

    @property
    def is_numeric(self) -> bool:
        """Whether most filled cells are numbers: the others are then slips to report, not a text column."""
        return self.numbers * 2 > self.filled


def _rows(path: Path) -> Iterator[list[str]]:
    csv.field_size_limit(2**30)  # whole CIFs stand in cells
    try:
        with opened(path) as file, io.TextIOWrapper(file, "utf-8-sig", newline="") as text:
            yield from filter(None, csv.reader(text))
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a CSV table in UTF-8 ({error})") from error


def _columns(path: Path) -> list[_Column]:
    rows = _rows(path)
    columns = [_Column(name.strip()) for name in next(rows, [])]
    number = 1
    for number, row in enumerate(rows, start=2):
        if len(row) != len(columns):
            raise InputError(f"{path}: row {number} has {len(row)} cells, the heading has {len(columns)}")
        for column, cell in zip(columns, row, strict=True):
            if cell.strip():
                column.first = column.first or cell
                column.filled += 1
                column.numbers += not isinstance(_number(cell), str)
    if number < 2:
        raise InputError(f"{path}: a heading and at least one row are needed")
    return columns


def _find_structures(path: Path, columns: list[_Column], wanted: str | None) -> int:
    names = [column.name for column in columns]
    if wanted is not None:
        if wanted in names:
            return names.index(wanted)
        raise InputError(f"{path}: no column {wanted!r} (--structure-column); the columns are {_named(columns)}")
    for known in _STRUCTURE_NAMES:
        for k, name in enumerate(names):
            if name.lower() == known:
                return k
    for k, column in enumerate(columns):
        cell = column.first
        if "_cell_length" in cell or ("\n" not in cell and is_structure_file(Path(cell))):
            return k
    raise InputError(f"{path}: no structure column among {_named(columns)}; name it with --structure-column")


def _named(columns: list[_Column]) -> str:
    return ", ".join(column.name for column in columns)


def _heading(text: str) -> tuple[str, str | None]:
    # "log10(K)" is a name; only a bracket set off by a space holds a unit.
    return split_heading(text) if re.search(r"\s\(", text) else (text, None)


def _number(cell: str) -> Label:
    text = cell.strip()
    if not text:
        return None
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _crystal_of_cell(folder: Path, cell: str, id: str) -> Crystal:
    if not cell:
        raise ValueError("the structure cell is empty")
    if "\n" in cell:
        return crystal_of_text(cell, id)
    path = folder / cell
    if not path.is_file():
        raise FileNotFoundError(f"no such file {cell}")
    records = list(read_structures(path))
    if len(records) != 1:
        raise ValueError(f"{cell} holds {len(records)} structures, one is needed")
    if records[0].crystal is None:
        raise ValueError(records[0].problem if records[0].problem == "disordered" else records[0].detail)
    crystal = as_crystal(records[0].crystal)
    return Crystal(crystal.lattice, crystal.frac_coords, crystal.numbers, id)
