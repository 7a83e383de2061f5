"""JSON sources: JARVIS lists, JSON-lines, Matbench tables and single structures."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.readers.record import Label, Record, as_label, crystal_of_arrays, make_record, read_bytes, read_lines
from datamodules.readers.structure_files import read_database

_ID_KEYS = ("id", "jid", "material_id")
_STRUCTURE_KEYS = ("structure", "atoms")


def read_json(path: Path, source: str, structure_column: str | None = None) -> Iterator[Record]:
    """Read a ``.json(.gz)`` or ``.jsonl(.gz)`` file; its layout is told from its content.

    Layouts: a list of records, or one record a line, each ``{"jid" or "id", "atoms" or "structure",
    labels}`` (labels in ``"labels"`` with optional ``"units"``, or beside the structure as JARVIS
    writes them); a Matbench table (``columns``, ``index``, ``data``); an ASE database; a single structure.

    Raises:
        InputError: If the file is neither JSON nor JSON-lines, or of an unknown layout.
    """
    if ".jsonl" in path.name:  # of any size: one line at a time
        yield from _read_lines(read_lines(path), source)
        return
    content = read_bytes(path)
    try:
        data = loads(content)
    except ValueError as error:
        if len(content.strip().splitlines()) < 2:
            raise InputError(f"{path}: not JSON ({error})") from error
        yield from _read_lines(content.splitlines(), source)
        return
    if isinstance(data, list):
        for index, entry in enumerate(data):
            yield _record_of_entry(entry, source, index)
    elif isinstance(data, dict) and "columns" in data and "data" in data:
        yield from _read_table(data, path, source, structure_column or "structure")
    elif isinstance(data, dict) and ("lattice_mat" in data or "sites" in data):
        yield make_record(source, 0, source, lambda: crystal_of_dict(data, source))
    elif isinstance(data, dict) and "nextid" in data and "ids" in data:
        yield from read_database(path, source)
    elif isinstance(data, dict) and any(key in data for key in _STRUCTURE_KEYS):
        yield _record_of_entry(data, source, 0)
    else:
        raise InputError(f"{path}: JSON of an unknown layout; see the formats `foundation data import` reads")


def loads(content: bytes) -> Any:
    """Parse JSON; the NaN and Infinity that Python writes are accepted and reported later as labels."""
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return json.loads(content)


def crystal_of_dict(data: dict[str, Any], id: str) -> Crystal:
    """Crystal from a JARVIS dictionary (``lattice_mat``) or a pymatgen one (``lattice``, ``sites``).

    Raises:
        KeyError, TypeError, ValueError: If it is neither; ValueError("disordered") for partial occupancy.
    """
    if "lattice_mat" in data:
        cartesian = str(data.get("cartesian", False)).lower() == "true"
        return crystal_of_arrays(data["lattice_mat"], data["coords"], data["elements"], cartesian, id)
    sites = data["sites"]
    for site in sites:
        if len(site["species"]) != 1 or abs(site["species"][0]["occu"] - 1) > 1e-8:
            raise ValueError("disordered")
    symbols = [site["species"][0]["element"] for site in sites]
    return crystal_of_arrays(data["lattice"]["matrix"], [site["abc"] for site in sites], symbols, False, id)


def _read_lines(lines: Iterable[bytes], source: str) -> Iterator[Record]:
    for index, line in enumerate(line for line in lines if line.strip()):
        try:
            entry = loads(line)
        except ValueError as error:
            detail = f"line {index + 1} is not JSON: {error}"[:200]
            yield Record(source, index, str(index), None, problem="unreadable", detail=detail)
            continue
        yield _record_of_entry(entry, source, index)


def _record_of_entry(entry: Any, source: str, index: int) -> Record:
    if not isinstance(entry, dict):
        return Record(source, index, str(index), None, problem="unreadable", detail="the record is not an object")
    id = next((str(entry[key]) for key in _ID_KEYS if entry.get(key) is not None), str(index))
    structure = next((entry[key] for key in _STRUCTURE_KEYS if key in entry), None)
    labels, units = _labels_of_entry(entry, source)
    return make_record(source, index, id, lambda: crystal_of_dict(_required(structure), id), labels, units)


def _required(structure: Any) -> dict[str, Any]:
    if not isinstance(structure, dict):
        raise ValueError("no structure in the record")
    return structure


def _labels_of_entry(entry: dict[str, Any], source: str) -> tuple[dict[str, Label], dict[str, str]]:
    if isinstance(entry.get("labels"), dict):
        units = entry.get("units") or {}
        return {name: as_label(value) for name, value in entry["labels"].items()}, units
    values = {key: value for key, value in entry.items() if key not in (*_ID_KEYS, *_STRUCTURE_KEYS)}
    if "value" in values:  # one quantity a file, named by the file; "target" is its copy scaled to [-1, 1]
        values.pop("target", None)
        values[source] = values.pop("value")
    labels = {key: as_label(value) for key, value in values.items()}
    # Null and text such as "na" mean "no label" in this layout.
    return {key: label for key, label in labels.items() if label is not None or values[key] is None}, {}


def _read_table(data: dict[str, Any], path: Path, source: str, structure_column: str) -> Iterator[Record]:
    columns = [str(column).strip() for column in data["columns"]]
    if structure_column not in columns:
        raise InputError(
            f"{path}: no structure column {structure_column!r} among {', '.join(columns)}; name it with "
            "--structure-column"
        )
    where = columns.index(structure_column)
    names = data.get("index", range(len(data["data"])))
    for index, (id, row) in enumerate(zip(names, data["data"], strict=True)):
        # Column headings such as log10(G_VRH) are names here: this layout has no place for units.
        labels = {name: as_label(row[k]) for k, name in enumerate(columns) if k != where and _is_label(row[k])}
        yield make_record(source, index, str(id), partial(crystal_of_dict, row[where], str(id)), labels)


def _is_label(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float | list | np.generic)
