"""Readers: every format becomes a stream of records."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from datamodules.errors import InputError
from datamodules.readers.json_records import read_json
from datamodules.readers.record import Label, Record, source_name
from datamodules.readers.structure_files import is_structure_file, read_folder, read_structures
from datamodules.readers.table import read_csv

__all__ = ["Label", "Record", "is_structure_file", "read_source", "read_structures", "source_name"]


def read_source(path: Path, structure_column: str | None = None) -> Iterator[Record]:
    """Read a source: a JSON, JSON-lines or CSV file, a structure file, or a folder of structure files.

    Args:
        path: The file or folder.
        structure_column: Where a table keeps its structures (CSV, Matbench); found by itself if None.

    Raises:
        InputError: If there is no such path, or the file as a whole makes no sense. A bad record
            is no error: it is yielded with its problem.
    """
    name = path.name.lower().removesuffix(".gz")
    source = source_name(path)
    if path.is_dir():
        yield from read_folder(path, source)
    elif not path.is_file():
        raise InputError(f"{path}: no such file or folder")
    elif name.endswith(".csv"):
        yield from read_csv(path, source, structure_column)
    elif name.endswith((".json", ".jsonl")):
        yield from read_json(path, source, structure_column)
    else:
        yield from read_structures(path, source)
