"""The store: crystals and their labels as memory-mapped Arrow shards with a manifest.

A folder of ``crystals-00000.arrow`` ... (Arrow IPC, the same as Feather v2: pandas.read_feather,
polars and duckdb open it), ``manifest.json``, ``rejected.csv`` and ``conflicts.csv``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.properties import Property
from datamodules.shaped import ShapedLabels
from datamodules.store_writer import MANIFEST, SCHEMA_VERSION, write_store

__all__ = ["SCHEMA_VERSION", "CrystalStore", "is_store", "write_store"]

FloatArray = npt.NDArray[np.float64]


def is_store(path: Path) -> bool:
    """Whether a folder is a store, of whatever schema version."""
    return (path / MANIFEST).is_file()


class CrystalStore:
    """An opened store of M crystals with A atoms in all; arrays are views of the mapped files.

    Attributes:
        path: The folder.
        manifest: What ``manifest.json`` says: counts, sources, statistics, versions.
        table: The Arrow table, one row per crystal.
        files_hash: Hash of the files as they were found: what is kept beside the store is named by it.
    """

    def __init__(self, path: Path, manifest: dict[str, Any], table: pa.Table, files_hash: str) -> None:
        self.path = path
        self.manifest = manifest
        self.table = table
        self.files_hash = files_hash
        self.properties = {item["name"]: Property(**item) for item in manifest["properties"]}

    @classmethod
    def open(cls, path: str | Path) -> CrystalStore:
        """Open a store.

        Raises:
            InputError: If there is none at this path, it is torn, or of another schema version.
        """
        path = Path(path)
        if not path.exists():
            raise InputError(f"{path}: no such store; make one with `foundation data import`")
        try:
            manifest = json.loads((path / MANIFEST).read_bytes())
            found = manifest["schema_version"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not a store (no readable {MANIFEST} with a schema_version in it)") from error
        if found != SCHEMA_VERSION:
            raise InputError(
                f"{path}: store of schema version {found}, this program reads version {SCHEMA_VERSION}; "
                "import the sources again"
            )
        try:
            # Before they are opened: should one be replaced in between, no later process has this hash.
            files_hash = _files_hash(path, [MANIFEST, *manifest["shards"]])
            shards = [pa.ipc.open_file(pa.memory_map(str(path / name))).read_all() for name in manifest["shards"]]
            store = cls(path, manifest, pa.concat_tables(shards), files_hash)
        except (OSError, pa.ArrowException, KeyError, TypeError) as error:
            raise InputError(f"{path}: the store is torn ({error}); import the sources again") from error
        if len(store) != manifest["counts"]["crystals"]:
            raise InputError(f"{path}: the store is torn (crystals are missing); import the sources again")
        return store

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @property
    def content_hash(self) -> str:
        """SHA-256 of the shards and the properties' units, as the import noted it; not compared with the shards."""
        return str(self.manifest["content_hash"])

    def blocks(self) -> Iterator[tuple[int, CrystalStore]]:
        """The store in parts that fit into memory, each with the row it begins at: a shard is a block."""
        start = 0
        for chunk in self.table["id"].chunks:
            yield start, CrystalStore(self.path, self.manifest, self.table.slice(start, len(chunk)), self.files_hash)
            start += len(chunk)

    def formula_codes(self) -> tuple[npt.NDArray[np.int32], pa.Array]:
        """[M] number of each crystal's reduced formula among those of the store, and these, sorted."""
        # Arrow's own pool keeps what the growing table of formulas outgrew, half as much again as what it needs.
        pool = pa.system_memory_pool()
        encoded = pc.dictionary_encode(self.table["formula"], memory_pool=pool)  # into one dictionary, for all chunks
        formulas = encoded.chunk(0).dictionary if encoded.num_chunks else pa.array([], pa.string())
        order = pc.array_sort_indices(formulas, memory_pool=pool)
        rank = np.empty(len(order), dtype=np.int32)
        rank[order.to_numpy()] = np.arange(len(order), dtype=np.int32)
        codes, start = np.empty(len(self), dtype=np.int32), 0
        for chunk in encoded.chunks:
            codes[start : start + len(chunk)] = rank[chunk.indices.to_numpy()]
            start += len(chunk)
        return codes, pc.take(formulas, order, memory_pool=pool)

    def has_formula(self, formulas: Collection[str]) -> npt.NDArray[np.bool_]:
        """[M] whether each crystal's reduced formula is one of these."""
        wanted = pa.array(sorted(formulas), pa.string())
        return np.asarray(pc.is_in(self.table["formula"], value_set=wanted))

    @cached_property
    def ids(self) -> list[str]:
        """[M] ids; those of the record whose structure is stored. Unique only within one source."""
        return list(self.table["id"].to_pylist())

    @cached_property
    def source_ids(self) -> list[list[str]]:
        """[M] lists of ``source:id``, one for every record merged into the crystal."""
        return list(self.table["source_ids"].to_pylist())

    @cached_property
    def formulas(self) -> list[str]:
        """[M] reduced formulas."""
        return list(self.table["formula"].to_pylist())

    @cached_property
    def ptr(self) -> npt.NDArray[np.int64]:
        """[M + 1] where each crystal's atoms begin in `numbers` and `frac_coords`."""
        sizes = pc.list_value_length(self._array("numbers")).to_numpy(zero_copy_only=False)
        return np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)]).astype(np.int64)

    @cached_property
    def numbers(self) -> npt.NDArray[np.uint8]:
        """[A] atomic numbers."""
        return np.asarray(self._array("numbers").flatten().to_numpy())

    @cached_property
    def frac_coords(self) -> FloatArray:
        """[A, 3] fractional coordinates."""
        return np.asarray(self._array("frac_coords").flatten().to_numpy()).reshape(-1, 3)

    @cached_property
    def lattices(self) -> FloatArray:
        """[M, 3, 3] lattice vectors in rows, Angstrom."""
        return np.asarray(self._array("lattice").flatten().to_numpy()).reshape(-1, 3, 3)

    def labels(self, names: Sequence[str]) -> FloatArray:
        """[M, P] values of P scalar properties in their stored units; NaN where there is none.

        Raises:
            InputError: If a property is not in the store, or is not one number per crystal.
        """
        columns = [self._array(self._known(name)) for name in names]
        for name, column in zip(names, columns, strict=True):
            if not pa.types.is_floating(column.type):
                raise InputError(f"{self.path}: property {name} is not one number per crystal")
        filled = [pc.fill_null(column, np.nan).to_numpy(zero_copy_only=False) for column in columns]
        return np.stack(filled, axis=1) if filled else np.empty((len(self), 0))

    def shaped(self, name: str) -> ShapedLabels:
        """Values of a tensor, spectrum or per-atom property, as views of the mapped files.

        Raises:
            InputError: If the property is not in the store, or its labels are not all of one shape.
        """
        column = self._array(self._known(name))
        sizes = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
        labelled, shape, inner = sizes > 0, [], column.flatten()
        if self.properties[name].level == "crystal":
            lengths, sizes = sizes[labelled], np.ones(len(self), dtype=np.int64)
            shape.append(self._one_length(name, lengths))
        else:
            atoms = np.diff(self.ptr)
            if (sizes[labelled] != atoms[labelled]).any():
                raise InputError(f"{self.path}: property {name} does not have one label for each atom")
            sizes = atoms
        while pa.types.is_list(inner.type):
            lengths = pc.list_value_length(inner).drop_null().to_numpy(zero_copy_only=False)
            shape.append(self._one_length(name, lengths))
            if inner.null_count:  # an atom without a tensor: as many empty places
                inner = pc.fill_null(inner, pa.scalar([None] * shape[-1], inner.type))
            inner = inner.flatten()
        values = inner.to_numpy(zero_copy_only=inner.null_count == 0).reshape(-1, *shape)
        taken = np.where(labelled, sizes, 0)
        first = np.where(labelled, np.cumsum(taken) - taken, -1)
        return ShapedLabels(first, sizes, values)

    def _one_length(self, name: str, lengths: npt.NDArray[Any]) -> int:
        found = np.unique(lengths)
        if len(found) > 1:
            raise InputError(f"{self.path}: labels of property {name} have {len(found)} different shapes")
        return int(found[0]) if len(found) else 0

    def nested(self, name: str) -> list[Any]:
        """[M] values of a tensor, spectrum or per-atom property as nested lists; None where there is none.

        Raises:
            InputError: If the property is not in the store.
        """
        return list(self._array(self._known(name)).to_pylist())

    def crystal(self, index: int) -> Crystal:
        """The structure of one row."""
        atoms = self.table["numbers"][index].values.to_numpy().astype(np.int64)
        coords = self.table["frac_coords"][index].values.to_numpy().reshape(-1, 3)
        lattice = self.table["lattice"][index].values.to_numpy().reshape(3, 3)
        return Crystal(lattice, coords, atoms, str(self.table["id"][index]))

    def _known(self, name: str) -> str:
        if name not in self.properties:
            raise InputError(f"{self.path}: no property {name!r}; it has {', '.join(self.properties) or 'none'}")
        return name

    def _array(self, name: str) -> pa.Array:
        column = self.table[name]
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _files_hash(path: Path, names: Sequence[str]) -> str:
    """Hash of names, sizes and times of change of a store's files, which costs the same for any number of rows.

    A copy that does not keep times has another hash than its original, which costs a cache, and not a wrong result.
    """
    found = [(name, (path / name).stat()) for name in names]
    text = json.dumps([[name, stat.st_size, stat.st_mtime_ns] for name, stat in found])
    return hashlib.sha256(text.encode()).hexdigest()
