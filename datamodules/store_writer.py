"""Writing a store: shards, manifest and tables, whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.matching import reduced_formula
from datamodules.properties import Property

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
SHARD_ROWS = 65536
RESERVED = ("id", "source_ids", "formula", "lattice", "numbers", "frac_coords")
TABLES = {
    "rejected.csv": ("source", "index", "id", "reason", "detail", "file"),
    "conflicts.csv": ("source", "index", "id", "property", "value", "kept", "kept_from"),
}
_PACKAGES = ("numpy", "pyarrow", "pymatgen", "ase", "spglib")

Rows = Sequence[Sequence[Any]]


def check_target(path: Path, overwrite: bool) -> None:
    """Check that a store may be written at a path.

    Raises:
        InputError: If something stands there that may not be replaced.
    """
    if not path.exists():
        return
    if not (path / MANIFEST).is_file():
        raise InputError(f"{path}: exists and is not a store; choose another --out")
    if not overwrite:
        raise InputError(f"{path}: this store exists; choose another --out or replace it with --overwrite")


def write_store(
    path: str | Path,
    crystals: Sequence[Crystal],
    labels: Mapping[str, Any],
    properties: Sequence[Property],
    source_ids: Sequence[Sequence[str]] | None = None,
    extra: Mapping[str, Any] | None = None,
    tables: Mapping[str, Rows] | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Write a store; it appears whole or not at all.

    Args:
        path: The folder to make.
        crystals: M crystals.
        labels: Property name to M values: numbers with NaN or None for none, or nested lists with None.
        properties: The vocabulary entry of every name in ``labels``.
        source_ids: [M] lists of ``source:id``; by default the store's own name and the crystal's id.
        extra: Further entries of the manifest; its "counts" are added to the count of crystals.
        tables: Rows of ``rejected.csv`` and ``conflicts.csv``.
        overwrite: Replace a store that stands there.

    Returns:
        The manifest.

    Raises:
        InputError: If something stands at the path, it cannot be written, or a property has a reserved name.
    """
    path = Path(path)
    check_target(path, overwrite)
    for prop in properties:
        if prop.name in RESERVED:
            raise InputError(f"property {prop.name}: the name is taken by the store; rename it with --map old=new")
    sources = [[f"{path.name}:{crystal.id}"] for crystal in crystals] if source_ids is None else source_ids
    table = _table(crystals, sources, labels, properties)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        temporary.mkdir(parents=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error
    try:
        shards = []
        for start in range(0, max(len(table), 1), SHARD_ROWS):
            shards.append(f"crystals-{start // SHARD_ROWS:05d}.arrow")
            part = table.slice(start, SHARD_ROWS).combine_chunks()
            with pa.OSFile(str(temporary / shards[-1]), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
                writer.write_table(part)
        manifest = _manifest(path.name, table, properties, dict(extra or {}))
        manifest |= {"shards": shards, "content_hash": _content_hash([temporary / s for s in shards], properties)}
        for name, heading in TABLES.items():
            with (temporary / name).open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([heading, *(tables or {}).get(name, [])])
        (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        _put_in_place(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone already where all went well
    return manifest


def _put_in_place(temporary: Path, path: Path) -> None:
    if not path.exists():
        os.rename(temporary, path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    os.rename(path, old)
    try:
        os.rename(temporary, path)
    except OSError:
        os.rename(old, path)
        raise
    shutil.rmtree(old)


def _table(
    crystals: Sequence[Crystal],
    source_ids: Sequence[Sequence[str]],
    labels: Mapping[str, Any],
    properties: Sequence[Property],
) -> pa.Table:
    ptr = np.concatenate([[0], np.cumsum([len(crystal) for crystal in crystals])]).astype(np.int32)
    lattices = np.array([crystal.lattice for crystal in crystals], dtype=np.float64).reshape(-1)
    numbers = np.concatenate([np.empty(0, np.uint8), *[crystal.numbers.astype(np.uint8) for crystal in crystals]])
    coords = np.concatenate([np.empty(0), *[crystal.frac_coords.reshape(-1) for crystal in crystals]])
    columns: dict[str, pa.Array] = {
        "id": pa.array([crystal.id for crystal in crystals], pa.string()),
        "source_ids": pa.array([list(ids) for ids in source_ids], pa.list_(pa.string())),
        "formula": pa.array([reduced_formula(crystal.numbers) for crystal in crystals], pa.string()),
        "lattice": pa.FixedSizeListArray.from_arrays(pa.array(lattices), 9),
        "numbers": pa.ListArray.from_arrays(pa.array(ptr), pa.array(numbers)),
        "frac_coords": pa.ListArray.from_arrays(pa.array(3 * ptr), pa.array(coords)),
    }
    fields = [pa.field(name, array.type) for name, array in columns.items()]
    for prop in properties:
        columns[prop.name] = _label_column(labels[prop.name])
        fields.append(pa.field(prop.name, columns[prop.name].type, metadata={"unit": prop.unit, "level": prop.level}))
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def _label_column(values: Any) -> pa.Array:
    first = next((value for value in values if isinstance(value, list)), None)
    if first is None:
        numbers = np.array([np.nan if value is None else value for value in values], dtype=np.float64)
        return pa.array(numbers, from_pandas=True)
    kind: pa.DataType = pa.float64()
    while isinstance(first, list):
        kind = pa.list_(kind)
        first = next((item for item in first if item is not None), None)
    return pa.array(values, kind)


def _manifest(name: str, table: pa.Table, properties: Sequence[Property], extra: dict[str, Any]) -> dict[str, Any]:
    counts = {"crystals": len(table), **extra.pop("counts", {})}
    return {
        "schema_version": SCHEMA_VERSION,
        "name": name,
        "counts": counts,
        "properties": [prop.as_dict() for prop in properties],
        "statistics": {prop.name: _statistics(table[prop.name].combine_chunks()) for prop in properties},
        **extra,
        "versions": {"python": sys.version.split()[0], **{package: version(package) for package in _PACKAGES}},
    }


def _statistics(column: Any) -> dict[str, float | int | None]:
    """Count of labelled crystals; range and median over all components of their labels."""
    count = len(column) - column.null_count
    while pa.types.is_list(column.type):
        column = column.flatten()
    values = column.drop_null().to_numpy(zero_copy_only=False)
    if len(values) == 0:
        return {"count": count, "min": None, "max": None, "median": None}
    return {"count": count, "min": float(values.min()), "max": float(values.max()), "median": float(np.median(values))}


def _content_hash(shards: Sequence[Path], properties: Sequence[Property]) -> str:
    digest = hashlib.sha256(json.dumps([prop.as_dict() for prop in properties], sort_keys=True).encode())
    for shard in shards:
        digest.update(shard.read_bytes())
    return digest.hexdigest()
