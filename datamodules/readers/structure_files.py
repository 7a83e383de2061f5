"""Structure files and folders of them: CIF through pymatgen, everything else through ASE."""

from __future__ import annotations

import io
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.crystals import Crystal, as_crystal
from datamodules.errors import InputError
from datamodules.readers.cif import cif_blocks, crystal_of_cif
from datamodules.readers.record import (
    Label,
    Record,
    as_label,
    bare_name,
    make_record,
    read_bytes,
    read_lines,
    source_name,
)

_SUFFIXES = {".cif", ".mcif", ".vasp", ".poscar", ".contcar", ".xyz", ".extxyz", ".xsf", ".res", ".gen", ".db", ".traj"}
_ID_KEYS = ("id", "material_id", "name")
_STATE = {"numbers", "positions", "tags", "momenta", "masses", "initial_magmoms", "initial_charges", "spacegroup_kinds"}


def is_structure_file(path: Path) -> bool:
    """Whether the name is one under which structures are kept (CIF, POSCAR, extxyz, ...)."""
    name = path.name.removesuffix(".gz")
    return Path(name).suffix.lower() in _SUFFIXES or name.upper().startswith(("POSCAR", "CONTCAR"))


def read_structures(path: Path, source: str | None = None) -> Iterator[Record]:
    """Read a structure file, one record per structure in it.

    A structure that cannot be read is a record with a problem; nothing is raised for it. The cell is
    kept as the file has it. Non-periodic directions are taken as periodic: the cell must be there.

    Args:
        path: CIF, POSCAR, extxyz, an ASE database or anything else ASE reads; ``.gz`` allowed for
            CIF, POSCAR and xyz.
        source: Name for the records' source; by default that of the path.

    Raises:
        InputError: If there is no such file.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    source = source_name(path) if source is None else source
    name = path.name.removesuffix(".gz")
    suffix = Path(name).suffix.lower()
    if suffix in (".cif", ".mcif"):
        yield from _read_cif(path, source)
    elif suffix in (".xyz", ".extxyz"):
        yield from _read_xyz(path, source)
    elif suffix in (".vasp", ".poscar", ".contcar") or name.upper().startswith(("POSCAR", "CONTCAR")):
        yield make_record(source, 0, bare_name(path), lambda: crystal_of_text(_text(path), bare_name(path)))
    elif suffix == ".db":
        yield from read_database(path, source)
    else:
        from ase.io import iread

        yield from _records_of_frames(iread(path, index=":", do_not_split_by_at_sign=True), path, source)


def read_folder(folder: Path, source: str) -> Iterator[Record]:
    """Read every structure file below a folder, in the order of their paths, which are the ids.

    Raises:
        InputError: If there is none.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and is_structure_file(path)]
    if not paths:
        raise InputError(f"{folder}: no structure file (CIF, POSCAR, extxyz, ...) in this folder")
    index = 0
    for path in paths:
        for record in read_structures(path, source):
            below = path.relative_to(folder).as_posix()
            id = f"{below}#{record.index}" if record.index else below
            crystal = None if record.crystal is None else replace(record.crystal, id=id)
            yield replace(record, index=index, id=id, crystal=crystal)
            index += 1


def crystal_of_text(text: str, id: str) -> Crystal:
    """Crystal from the text of a CIF (its first structure) or a POSCAR.

    Raises:
        ValueError: "disordered" for partial occupancy; pymatgen's or ASE's own errors for bad text.
    """
    if "_cell_length" in text.lower():
        return crystal_of_cif(text, id)
    from ase.io.vasp import read_vasp

    return as_crystal(read_vasp(io.StringIO(text)), id)


def _text(path: Path) -> str:
    # Names of authors in old files are in any encoding; what matters is ASCII.
    return read_bytes(path).decode("utf-8", errors="replace")


def _lines(path: Path) -> Iterator[str]:
    return (line.decode("utf-8", errors="replace") for line in read_lines(path))


def _read_cif(path: Path, source: str) -> Iterator[Record]:
    blocks = cif_blocks(f"{line}\n" for line in _lines(path))
    index = 0
    try:
        first = list(islice(blocks, 2))  # two, to know whether there are several
        for block in chain(first, blocks):
            id = block[:200].split(maxsplit=1)[0][5:] if len(first) > 1 else ""
            id = id or bare_name(path)
            yield make_record(source, index, id, partial(crystal_of_cif, block, id))
            index += 1
    except InputError as error:
        id = f"{bare_name(path)}-{index}" if index else bare_name(path)
        yield Record(source, index, id, None, problem="unreadable", detail=str(error))


def _read_xyz(path: Path, source: str) -> Iterator[Record]:
    """Frames are cut out here, so that one bad frame does not take the rest of the file with it."""
    index = 0
    lines = enumerate(_lines(path), start=1)
    try:
        for number, line in lines:
            if not line.strip():
                continue
            if not line.strip().isdecimal():
                raise InputError(f"line {number}: the number of atoms should stand here; nothing after it can be read")
            frame = "\n".join([line, *(line for _, line in islice(lines, int(line) + 1))]) + "\n"
            yield _record_of_frame(frame, path, source, index)
            index += 1
        if index == 0:
            raise InputError(f"{path}: the file is empty")
    except InputError as error:
        id = f"{bare_name(path)}-{index}" if index else bare_name(path)
        yield Record(source, index, id, None, problem="unreadable", detail=str(error))


def read_database(path: Path, source: str) -> Iterator[Record]:
    """Read an ASE database (SQLite or JSON); its key-value pairs and data are labels."""

    def frames() -> Iterator[Any]:
        import ase.db

        if path.suffix == ".db":  # ASE makes its tables in whatever file it opens that has none
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
                connection.execute("SELECT id FROM systems LIMIT 1")
        for row in ase.db.connect(path, serial=True).select():
            yield row.toatoms(add_additional_information=True)

    yield from _records_of_frames(frames(), path, source)


def _records_of_frames(frames: Iterator[Any], path: Path, source: str) -> Iterator[Record]:
    index = 0
    try:
        for atoms in frames:
            yield _record_of_frame(atoms, path, source, index)
            index += 1
    except Exception as error:  # ASE's readers raise whatever they meet in a bad file: that is the finding
        detail = f"{type(error).__name__}: {error}; nothing after it can be read".splitlines()[0][:200]
        yield Record(source, index, f"{bare_name(path)}-{index}", None, problem="unreadable", detail=detail)


def _frame_of_text(frame: str) -> Any:
    from ase.io.extxyz import read_xyz

    return next(iter(read_xyz(io.StringIO(frame), 0)))


def _record_of_frame(frame: Any, path: Path, source: str, index: int) -> Record:
    """Record of a frame: ASE atoms, or the text of an xyz frame."""
    labels: dict[str, Label] = {}
    id = f"{bare_name(path)}-{index}"

    def build() -> Crystal:
        nonlocal id
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # remarks on the file's comment line
            atoms = _frame_of_text(frame) if isinstance(frame, str) else frame
        own = next((atoms.info[key] for key in _ID_KEYS if isinstance(atoms.info.get(key), str | int)), None)
        id = id if own is None else str(own)
        labels.update(_labels_of_atoms(atoms))
        return as_crystal(atoms, id)

    record = make_record(source, index, id, build)
    return replace(record, id=id, labels=labels)


def _labels_of_atoms(atoms: Any) -> dict[str, Label]:
    info = dict(atoms.info)
    data, pairs = info.pop("data", {}), info.pop("key_value_pairs", {})  # as an ASE database returns them
    results = atoms.calc.results if atoms.calc is not None else {}
    arrays = {name: value for name, value in atoms.arrays.items() if name not in _STATE}
    values = {**arrays, **results, **(data if isinstance(data, dict) else {}), **pairs, **info}
    labels = {name: as_label(value) for name, value in values.items() if name not in _ID_KEYS}
    return {name: label for name, label in labels.items() if label is not None and not _empty(label)}


def _empty(label: Label) -> bool:
    return isinstance(label, list) and np.size(label) == 0
