"""Every format becomes records; a bad structure becomes a record with a problem."""

from __future__ import annotations

import gzip
import json
import os
import sqlite3
import tracemalloc
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import ase.db
import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from datamodules.crystals import Crystal, as_crystal
from datamodules.errors import InputError
from datamodules.readers import Record, read_source, read_structures, source_name
from datamodules.validity import problem_of

NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
DISORDERED = Structure(Lattice.cubic(3.6), [{"Cu": 0.5, "Au": 0.5}], [[0, 0, 0]])


def jarvis(structure: Structure = NACL) -> dict[str, Any]:
    return {
        "lattice_mat": structure.lattice.matrix.tolist(),
        "coords": structure.frac_coords.tolist(),
        "elements": [site.specie.symbol for site in structure],
        "cartesian": False,
    }


def dump(path: Path, data: Any) -> Path:
    text = json.dumps(data) if not isinstance(data, str) else data
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def same_as_nacl(record: Record) -> bool:
    if record.crystal is None or len(record.crystal) != 8:
        return False
    numbers = sorted(record.crystal.numbers)
    return bool(np.isclose(record.crystal.volume, NACL.volume)) and numbers == [11] * 4 + [17] * 4


def test_jarvis_value_is_named_by_the_file_and_replaces_its_scaled_copy(tmp_path: Path) -> None:
    entries = [{"jid": 7, "target": -0.5, "value": 1.25, "note": "text", "gap": "na", "atoms": jarvis()}]
    (record,) = read_source(dump(tmp_path / "gv.json.gz", entries))
    assert (record.source, record.id, record.labels) == ("gv", "7", {"gv": 1.25})
    assert same_as_nacl(record)


def test_jarvis_keeps_every_number_and_list(tmp_path: Path) -> None:
    cartesian = {**jarvis(), "coords": NACL.cart_coords.tolist(), "cartesian": True}
    entries = [{"jid": "JVASP-1", "gap": 2, "tensor": [[1, 2.0], [3, 4]], "tags": ["a"], "atoms": cartesian}]
    (record,) = read_source(dump(tmp_path / "dft.json", entries))
    assert record.labels == {"gap": 2, "tensor": [[1, 2.0], [3, 4]]}
    assert record.crystal is not None
    np.testing.assert_allclose(record.crystal.frac_coords, NACL.frac_coords, atol=1e-12)


def test_matbench_table(tmp_path: Path) -> None:
    rows = [[NACL.as_dict(), 3.5, True], [DISORDERED.as_dict(), 1.0, False], [{"lattice": 1}, None, False]]
    table = {"columns": ["structure", "log10(K_VRH)", "is_metal"], "index": [10, 11, 12], "data": rows}
    good, disordered, broken = read_source(dump(tmp_path / "matbench.json.gz", table))
    assert same_as_nacl(good)
    assert (good.id, good.labels) == ("10", {"log10(K_VRH)": 3.5, "is_metal": True})
    assert (disordered.problem, broken.problem) == ("disordered", "unreadable")
    table["columns"][0] = "crystal"
    named = list(read_source(dump(tmp_path / "other.json", table), structure_column="crystal"))
    assert same_as_nacl(named[0])
    with pytest.raises(InputError, match="no structure column 'structure' among crystal"):
        list(read_source(tmp_path / "other.json"))


def test_json_lines_go_on_after_bad_lines(tmp_path: Path) -> None:
    good = {"id": "a", "structure": jarvis(), "labels": {"x": 1.5, "site": [1.0, None]}, "units": {"x": "eV"}}
    lines = [json.dumps(good), "{torn", json.dumps({"id": "b", "labels": {"x": float("nan")}})]
    wrong = {"id": "c", "structure": {**jarvis(), "elements": ["Na"]}}
    records = list(read_source(dump(tmp_path / "set" / "data.jsonl.gz", "\n".join([*lines, json.dumps(wrong)]))))
    assert [record.problem for record in records] == [None, *["unreadable"] * 3]
    assert records[0].source == "set"
    assert records[0].units == {"x": "eV"}
    assert records[0].labels == {"x": 1.5, "site": [1.0, None]}
    assert [record.index for record in records] == [0, 1, 2, 3]
    assert "8 positions, 1 elements" in records[3].detail


@pytest.mark.parametrize(("name", "content"), [("a.json", "{torn"), ("a.json", '{"x": 1}'), ("a.json.gz", "torn")])
def test_a_file_that_makes_no_sense_is_an_input_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=r"a\.json"):
        list(read_source(tmp_path / name))


def test_csv_of_paths_with_units(tmp_path: Path) -> None:
    CifWriter(NACL).write_file(tmp_path / "nacl.cif")
    NACL.to(str(tmp_path / "POSCAR_1"), fmt="poscar")
    CifWriter(DISORDERED).write_file(tmp_path / "mixed.cif")
    rows = ["a,nacl.cif,25,1.2,,fine", "b,POSCAR_1,abc,1.3,2,", "c,mixed.cif,1,1,1,", "d,no.cif,1,1,1,"]
    text = "\n".join(["id,path,K (GPa),log10(G),n,remark", *rows])
    records = list(read_source(dump(tmp_path / "mine.csv", text)))
    assert [record.problem for record in records] == [None, None, "disordered", "unreadable"]
    assert [record.id for record in records] == ["a", "b", "c", "d"]
    assert same_as_nacl(records[0])
    assert same_as_nacl(records[1])
    assert records[0].labels == {"K": 25.0, "log10(G)": 1.2, "n": None}
    assert records[0].units == {"K": "GPa"}
    assert records[1].labels["K"] == "abc"


def test_csv_of_cif_text_and_named_column(tmp_path: Path) -> None:
    cell = str(CifWriter(NACL)).replace('"', '""')
    found, named = f'a,what\n1,"{cell}"\n', f'model,what\n"{cell}",2\n'
    assert same_as_nacl(next(read_source(dump(tmp_path / "a.csv", found))))
    record = next(read_source(dump(tmp_path / "b.csv", named), structure_column="model"))
    assert same_as_nacl(record)
    assert record.labels == {"what": 2.0}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b\n1,2\n", "no structure column among a, b"),
        ("path,b\nx.cif\n", "row 2 has 1 cells"),
        ("path,K (GPa),K (eV)\nx.cif,1,2\n", "same name"),
        ("path,b\n", "at least one row"),
    ],
)
def test_bad_tables_are_input_errors(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        list(read_source(dump(tmp_path / "t.csv", text)))
    with pytest.raises(InputError, match=r"zzz|row|heading"):
        list(read_source(tmp_path / "t.csv", structure_column="zzz"))


def test_extxyz_goes_on_after_a_bad_frame(tmp_path: Path) -> None:
    atoms = Atoms("Cu2", scaled_positions=[[0, 0, 0], [0.5, 0.5, 0.5]], cell=[3, 3, 3], pbc=True)
    atoms.info = {"name": "first", "gap": 0.5, "stress3": np.eye(3), "remark": "x"}
    atoms.arrays["moment"] = np.array([1.0, -1.0])
    atoms.calc = SinglePointCalculator(atoms, energy=-7.0)
    path = tmp_path / "set.extxyz"
    write(path, atoms)
    good = path.read_text()
    bad = good.replace("Cu ", "Cu x", 1)
    path.write_text(good + bad + good + "not a number\n")
    records = list(read_structures(path))
    assert [record.problem for record in records] == [None, "unreadable", None, "unreadable"]
    labels = records[2].labels
    assert (labels["gap"], labels["energy"], labels["moment"]) == (0.5, -7.0, [1.0, -1.0])
    assert labels["stress3"] == np.eye(3).tolist()
    assert "remark" not in labels
    assert records[0].id == "first"


@pytest.mark.parametrize("name", ["set.db", "set.json"])
def test_ase_database(tmp_path: Path, name: str) -> None:
    with ase.db.connect(tmp_path / name) as database:
        for gap in (0.5, 0.75):
            database.write(Atoms("Cu", cell=[3, 3, 3], pbc=True), gap=gap, text="x", data={"tensor": [[1.0, 2.0]]})
    records = list(read_source(tmp_path / name))
    assert [record.labels for record in records] == [{"gap": gap, "tensor": [[1.0, 2.0]]} for gap in (0.5, 0.75)]


def test_a_database_of_another_kind_is_unreadable_and_left_as_it_is(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = (tmp_path / "other.db").read_bytes()
    (record,) = read_source(tmp_path / "other.db")
    assert record.problem == "unreadable"
    assert (tmp_path / "other.db").read_bytes() == before


def test_cif_with_several_structures_one_of_them_bad(tmp_path: Path) -> None:
    text = (
        "data_global\n_publ x\n"
        + str(CifWriter(NACL))
        + "data_bad\n_cell_length_a ?\n_atom_site_label\n"
        + str(CifWriter(DISORDERED))
    )
    records = list(read_structures(dump(tmp_path / "many.cif", text)))
    assert [record.problem for record in records] == [None, "unreadable", "disordered"]
    assert same_as_nacl(records[0])
    assert records[1].id == "bad"


@pytest.mark.parametrize("name", ["many.csv", "many.csv.gz", "many.cif", "many.cif.gz"])
def test_long_files_are_read_in_little_memory(tmp_path: Path, name: str) -> None:
    cif = str(CifWriter(NACL)) + 1000 * f"#{'x' * 98}\n"
    rows = ['"{}",{}\n'.format(cif.replace('"', '""'), row) for row in range(200)]
    path = dump(tmp_path / name, "cif,gap\n" + "".join(rows) if "csv" in name else 200 * cif)
    tracemalloc.start()
    records = list(islice(read_source(path), 3))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert all(same_as_nacl(record) for record in records)
    assert [record.labels for record in records] == [{"gap": row} if "csv" in name else {} for row in range(3)]
    assert peak < 5e6 < 200 * len(cif) / 4


def test_a_cif_that_is_torn_keeps_what_was_read(tmp_path: Path) -> None:
    text = "".join(f"{CifWriter(NACL)}# {os.urandom(20_000).hex()}\n" for _ in range(20))
    path = dump(tmp_path / "many.cif.gz", text)
    path.write_bytes(path.read_bytes()[:-100_000])
    records = list(read_structures(path))
    assert 10 < len(records) < 20
    assert all(same_as_nacl(record) for record in records[:-1])
    assert (records[-1].id, records[-1].problem) == (f"many-{len(records) - 1}", "unreadable")
    assert "fetch or make the file again" in records[-1].detail


@pytest.mark.parametrize("name", ["a.cif", "POSCAR", "a.xyz", "a.db", "a.traj", "a.png", "a.cif.gz", "a.xyz.gz"])
@pytest.mark.parametrize("content", ["", "rubbish\nof\nmany\nlines\n1 2 3\n4 5 6\n7 8 9\n1\nDirect\n"])
def test_rubbish_is_unreadable_never_an_exception(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    (record,) = read_structures(tmp_path / name)
    assert record.problem == "unreadable"
    assert record.crystal is None
    assert record.detail


def test_folder(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    (folder / "sub").mkdir(parents=True)
    CifWriter(NACL).write_file(folder / "b.cif")
    NACL.to(str(folder / "sub" / "POSCAR"), fmt="poscar")
    (folder / "README.md").write_text("not a structure")
    records = list(read_source(folder))
    assert [(record.source, record.index, record.id) for record in records] == [
        ("mine", 0, "b.cif"),
        ("mine", 1, "sub/POSCAR"),
    ]
    assert all(same_as_nacl(record) for record in records)
    (folder / "empty").mkdir()
    with pytest.raises(InputError, match="no structure file"):
        list(read_source(folder / "empty"))


def test_no_such_path(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        list(read_source(tmp_path / "none.json"))
    with pytest.raises(InputError, match="no such file"):
        list(read_structures(tmp_path / "none.cif"))


def test_source_names(tmp_path: Path) -> None:
    names = {"x/gv.json.gz": "gv", "mp_set/data.jsonl.gz": "mp_set", "x/a.b.csv": "a.b"}
    for path, name in names.items():
        assert source_name(dump(tmp_path / path, "x")) == name


def crystal(**changes: Any) -> Crystal:
    parts = {
        "lattice": 4.0 * np.eye(3),
        "frac_coords": np.array([[0.0, 0, 0], [0.5, 0.5, 0.5]]),
        "numbers": np.array([11, 17]),
    }
    return Crystal(**{**parts, **changes})


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({}, None),
        ({"frac_coords": np.array([[0.0, 0, 0], [0.0, 0, 0.99]])}, "overlapping_atoms"),
        ({"frac_coords": np.zeros((2, 3))}, "overlapping_atoms"),
        ({"lattice": np.diag([0.4, 40.0, 40.0])}, "overlapping_atoms"),
        ({"lattice": np.diag([4.0, 4.0, 0.0])}, "flat_cell"),
        ({"lattice": np.diag([4.0, 4.0, np.nan])}, "nonfinite"),
        ({"frac_coords": np.array([[0.0, 0, 0], [0.5, np.inf, 0.5]])}, "nonfinite"),
        ({"frac_coords": np.array([[0.0, 0, 0], [0.5, 1e30, 0.5]])}, "nonfinite"),
        ({"numbers": np.array([0, 17])}, "unknown_element"),
        ({"numbers": np.array([11, 119])}, "unknown_element"),
        ({"frac_coords": np.empty((0, 3)), "numbers": np.empty(0, dtype=np.int64)}, "empty"),
        ({"lattice": 1000.0 * np.eye(3)}, None),  # isolated atoms are no error, and cost no memory
        ({"lattice": -4.0 * np.eye(3)}, None),  # left-handed
    ],
)
def test_validity(changes: dict[str, Any], problem: str | None) -> None:
    assert problem_of(crystal(**changes)) == problem


def test_validity_of_a_large_cell() -> None:
    large = as_crystal(NACL.make_supercell([5, 5, 2], in_place=False))
    assert len(large) == 400
    assert problem_of(large) is None
    moved = large.frac_coords.copy()
    moved[399] = moved[0] + [0.0, 0.0, -0.03]  # across the boundary, 0.34 Angstrom away
    assert problem_of(Crystal(large.lattice, moved, large.numbers)) == "overlapping_atoms"
