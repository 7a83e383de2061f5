"""Sources become one store; what is bad is listed with a reason; contradictions are refused."""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter

from datamodules.errors import InputError
from datamodules.importing import import_store
from datamodules.store import CrystalStore
from foundation.commands import data as command


def salt(cation: str = "Na", a: float = 5.64) -> Structure:
    """The rock-salt structure, conventional cell."""
    corners = np.array([[0, 0, 0], [0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]])
    return Structure(Lattice.cubic(a), [cation] * 4 + ["Cl"] * 4, [*corners, *(corners + 0.5)])


def entry(structure: Structure, id: str, **labels: Any) -> dict[str, Any]:
    arrays = {
        "lattice_mat": structure.lattice.matrix.tolist(),
        "coords": structure.frac_coords.tolist(),
        "elements": [site.specie.symbol for site in structure],
        "cartesian": False,
    }
    return {"id": id, "structure": arrays, "labels": labels}


def lines(path: Path, *entries: dict[str, Any]) -> Path:
    path.write_text("\n".join(json.dumps(item) for item in entries))
    return path


def rows(store: Path, name: str = "rejected.csv") -> list[dict[str, str]]:
    with (store / name).open(newline="") as file:
        return list(csv.DictReader(file))


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return command.run(parser.parse_args([str(word) for word in words]))


def test_the_same_crystal_becomes_one_row(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", entry(salt(), "1", gap=5.0, energy=-3.0), entry(salt("K", 6.3), "2", gap=4.0))
    second = lines(
        tmp_path / "b.jsonl",
        entry(salt().get_primitive_structure(), "9", gap=5.0000001, energy=-2.9, hull=0.0),
        entry(salt("Rb", 6.6), "8", hull=0.1),
    )
    result = import_store([first, second], tmp_path / "s", workers=1)
    store = CrystalStore.open(tmp_path / "s")
    assert store.manifest["counts"] == {
        "crystals": 3,
        "records": 4,
        "merged": 1,
        "rejected": 0,
        "dropped_labels": 0,
        "duplicates": 2,
        "conflicts": 1,
    }
    assert store.source_ids == [["a:1", "b:9"], ["a:2"], ["b:8"]]
    assert (store.ids, store.formulas) == (["1", "2", "8"], ["ClNa", "ClK", "ClRb"])
    np.testing.assert_array_equal(
        store.labels(["gap", "energy", "hull"]), [[5, -3, 0], [4, np.nan, np.nan], [np.nan, np.nan, 0.1]]
    )
    (conflict,) = rows(tmp_path / "s", "conflicts.csv")
    assert (conflict["property"], conflict["value"], conflict["kept"]) == ("energy", "-2.9", "-3.0")
    assert (conflict["source"], conflict["id"], conflict["kept_from"]) == ("b", "9", "a:1")
    assert [source["name"] for source in store.manifest["sources"]] == ["a", "b"]
    (warning,) = result.warnings
    assert "a: gap (no unit), energy (no unit); b: gap" in warning


def test_different_crystals_that_look_alike_are_told_of_and_kept_apart(tmp_path: Path) -> None:
    """Facets of one metal: equal formula and space group, and vacuum makes their volumes alike."""
    slabs = lines(tmp_path / "slabs.jsonl", *(entry(salt(), str(place), work=float(place)) for place in range(12)))
    merged = import_store([slabs], tmp_path / "merged", ["work:eV"], workers=1)
    assert merged.manifest is not None
    assert merged.manifest["counts"]["crystals"] == 1
    (warning,) = merged.warnings
    assert warning.startswith("warning: 11 labels of records of one source")
    assert "--no-merge" in warning
    apart = import_store([slabs], tmp_path / "apart", ["work:eV"], workers=1, separate=True)
    assert apart.warnings == []
    store = CrystalStore.open(tmp_path / "apart")
    assert store.labels(["work"])[:, 0].tolist() == list(range(12))
    assert store.manifest["counts"]["merged"] == 0


def test_nested_labels_stay_with_their_own_structure(tmp_path: Path) -> None:
    tensor = np.diag([1.0, 2.0, 3.0]).tolist()
    scalar = lines(tmp_path / "scalar.jsonl", entry(salt(), "s", gap=5.0), entry(salt("K", 6.3), "k", moment=[1.0] * 8))
    primitive = salt().get_primitive_structure()
    tensors = lines(tmp_path / "tensor.jsonl", entry(primitive, "t", tensor=tensor, moment=[0.5, None]))
    turned = lines(tmp_path / "turned.jsonl", entry(salt(), "u", tensor=tensor, dos=[0.0, 1.0, 2.0, 1.0], gap=5.0))
    import_store([scalar, tensors, turned], tmp_path / "s")
    store = CrystalStore.open(tmp_path / "s")
    assert store.ids[0] == "t"
    assert len(store.crystal(0)) == 2
    assert store.source_ids[0] == ["scalar:s", "tensor:t", "turned:u"]
    assert store.nested("tensor") == [tensor, None]
    assert store.nested("moment") == [[0.5, None], [1.0] * 8]
    assert store.nested("dos") == [[0.0, 1.0, 2.0, 1.0], None]  # a spectrum holds in every frame
    assert store.properties["dos"].kind == "spectrum"
    (row,) = rows(tmp_path / "s")
    assert (row["source"], row["id"], row["reason"]) == ("turned", "u", "other_frame")
    assert store.manifest["counts"]["dropped_labels"] == 1
    assert store.properties["moment"].level == "atom"
    assert (store.properties["tensor"].level, store.properties["tensor"].kind) == ("crystal", "tensor")


def test_bad_records_and_labels_are_listed_and_the_import_goes_on(tmp_path: Path) -> None:
    overlapping = Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0, 0, 0.01]])
    isolated = Structure(Lattice.cubic(50), ["Xe"], [[0, 0, 0]])
    odd = entry(salt("Li", 5.1), "odd", gap=1.0)
    odd["structure"]["elements"][0] = "Qq"
    source = lines(
        tmp_path / "a.jsonl",
        entry(salt(), "good", gap=1.0, moment=[1.0] * 8, is_metal=False),
        entry(salt("K", 6.3), "nan", gap=float("nan"), hull=1.0),
        entry(salt("Rb", 6.6), "inf", gap=float("inf")),
        entry(overlapping, "overlapping", gap=1.0),
        entry(isolated, "isolated", gap=9.0),
        {"id": "broken", "structure": {"lattice_mat": 1}, "labels": {"gap": 1.0}},
        odd,
        entry(salt("Cs", 7.0), "shapes", gap=[1.0], moment=[1.0, [2.0]], is_metal=0.5, hull=2.0),
        entry(salt().make_supercell([5, 5, 2], in_place=False), "large", gap=None),
    )
    import_store([source], tmp_path / "s")
    store = CrystalStore.open(tmp_path / "s")
    found = {(row["id"], row["reason"]) for row in rows(tmp_path / "s")}
    assert found == {
        ("nan", "nonfinite_label"),
        ("inf", "nonfinite_label"),
        ("overlapping", "overlapping_atoms"),
        ("broken", "unreadable"),
        ("odd", "unknown_element"),
        ("shapes", "wrong_shape"),
        ("shapes", "not_0_or_1"),
    }
    assert store.ids == ["good", "nan", "isolated", "shapes"]
    assert store.source_ids[0] == ["a:good", "a:large"]
    assert store.properties["is_metal"].kind == "class"
    counts = store.manifest["counts"]
    assert (counts["records"], counts["rejected"], counts["merged"], counts["dropped_labels"]) == (9, 4, 1, 4)
    assert counts["records"] == counts["crystals"] + counts["merged"] + counts["rejected"]


def test_units_and_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CifWriter(salt()).write_file(tmp_path / "a.cif")
    (tmp_path / "t.csv").write_text("path,K (GPa),n\na.cif,24.0,1.5\n")
    assert run("import", tmp_path / "t.csv", "--out", tmp_path / "s", "--property", "n::log") == 0
    store = CrystalStore.open(tmp_path / "s")
    assert (store.properties["K"].unit, store.properties["n"].log, store.properties["K"].log) == ("GPa", True, False)
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "records read" in printed.out


def test_a_source_without_units_is_one_warning_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = lines(tmp_path / "a.jsonl", entry(salt(), "1", band_gap=5.0, mine=1.0))
    assert run("import", source, "--out", tmp_path / "s") == 0
    warning = capsys.readouterr().err.strip().splitlines()
    assert len(warning) == 1
    assert "a: band_gap (eV), mine (no unit)" in warning[0]
    assert CrystalStore.open(tmp_path / "s").properties["band_gap"].unit == "eV"


def with_unit(path: Path, name: str, unit: str) -> Path:
    return lines(path, {**entry(salt(), "1", **{name: 1.0}), "units": {name: unit}})


@pytest.mark.parametrize(
    ("names", "words", "message"),
    [
        (["known.jsonl"], [], "source known: property band_gap: unit 'meV' contradicts the known unit 'eV'"),
        (["GPa.jsonl", "kbar.jsonl"], [], "property p: source kbar has unit 'kbar', GPa says 'GPa'"),
        (["GPa.jsonl"], ["--property", "p:eV"], "--property says 'eV'"),
        (["GPa.jsonl"], ["--property", "band_gap:meV"], "contradicts the known unit"),
        (["GPa.jsonl"], ["--property", "q:eV"], "no source has a label 'q'; they have p"),
        (["GPa.jsonl"], ["--property", "p"], "write name:unit"),
        (["GPa.jsonl"], ["--map", "q=r"], "no source has a label 'q'; they have p"),
        (["GPa.jsonl"], ["--map", "q"], "write old=new"),
        (["GPa.jsonl"], ["--map", "p=formula"], "is taken"),
        (["GPa.jsonl", "two.jsonl"], ["--map", "p=q"], "get the same name"),
        (["GPa.jsonl", "GPa.jsonl"], [], "given twice"),
        (["GPa.jsonl", "none.jsonl"], [], "none.jsonl: no such file or folder"),
        (["GPa.jsonl", "empty.jsonl"], [], "empty.jsonl: no records"),
    ],
)
def test_wrong_input_is_one_line_and_nothing_is_written(
    tmp_path: Path, names: list[str], words: list[str], message: str
) -> None:
    with_unit(tmp_path / "known.jsonl", "band_gap", "meV")
    with_unit(tmp_path / "GPa.jsonl", "p", "GPa")
    with_unit(tmp_path / "kbar.jsonl", "p", "kbar")
    lines(tmp_path / "two.jsonl", entry(salt(), "1", p=1.0, q=2.0))
    lines(tmp_path / "empty.jsonl")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError) as error:
        run("import", *[tmp_path / name for name in names], "--out", tmp_path / "s", *words)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert sorted(tmp_path.iterdir()) == before


def test_rename_before_units_are_checked(tmp_path: Path) -> None:
    source = with_unit(tmp_path / "a.jsonl", "band_gap", "meV")
    assert run("import", source, "--out", tmp_path / "s", "--map", "band_gap=gap_mev") == 0
    assert CrystalStore.open(tmp_path / "s").properties["gap_mev"].unit == "meV"


def test_exit_code_1_only_if_no_record_succeeded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "cifs"
    folder.mkdir()
    (folder / "bad.cif").write_text("data_x\nrubbish")
    assert run("import", folder, "--out", tmp_path / "s") == 1
    assert "nothing is written; rejected: unreadable 1; the first: cifs: 0: bad.cif" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()
    CifWriter(salt()).write_file(folder / "good.cif")
    assert run("import", folder, "--out", tmp_path / "s") == 0
    assert "rejected.csv" in capsys.readouterr().out
    assert len(CrystalStore.open(tmp_path / "s")) == 1


@pytest.mark.parametrize(
    ("values", "reason", "detail"),
    [
        ([[1.0] * 50, [1.0] * 51, [2.0] * 51], "wrong_shape", "x has the shape (50,), most labels have (51,)"),
        ([[[1.0] * 6] * 5, [[1.0] * 6] * 6, [[2.0] * 6] * 6], "wrong_shape", "(5, 6), most labels have (6, 6)"),
        ([[[1.0]] * 5, [1.0] * 5, [2.0] * 5], "wrong_shape", "x has the shape (5, 1), most labels have (5,)"),
        ([7.0, [1.0] * 5, [2.0] * 5], "wrong_shape", "x has the shape (), most labels have (5,)"),
        ([[1.0] * 4 + [None], [1.0] * 5, [2.0] * 5], "nonfinite_label", "x has a null"),
        ([[[1.0, 2.0], [3.0]], [[1.0] * 2] * 2, [[2.0] * 2] * 2], "wrong_shape", "x"),
    ],
)
def test_a_label_unlike_the_others_of_an_undeclared_property_is_listed(
    tmp_path: Path, values: list[Any], reason: str, detail: str
) -> None:
    cations, values = ("Na", "K", "Rb", "Cs"), [*values, values[-1]]
    given = [entry(salt(name, 5.6), name, x=x, y=1.0) for name, x in zip(cations, values, strict=True)]
    file = lines(tmp_path / "a.jsonl", *given, entry(salt("Li"), "Li", x=values[0]))
    import_store([file], tmp_path / "s", workers=1)
    store = CrystalStore.open(tmp_path / "s")
    assert store.ids == list(cations)
    assert store.nested("x") == [None, *values[1:]]
    store.shaped("x")
    found = rows(tmp_path / "s")
    assert {row["id"]: row["reason"] for row in found} == {"Na": reason, "Li": reason}
    assert all(detail in row["detail"] for row in found)
    assert {row["file"] for row in found} == {str(file)}
    counts = store.manifest["counts"]
    assert (counts["rejected"], counts["dropped_labels"]) == (1, 1)


def test_one_wrong_list_among_labels_of_atoms_is_listed(tmp_path: Path) -> None:
    primitive = salt("K").get_primitive_structure()
    given = [entry(salt(), "a", m=[1.0] * 8), entry(primitive, "b", m=[1.0] * 2), entry(salt("Rb"), "c", m=[1.0] * 7)]
    import_store([lines(tmp_path / "a.jsonl", *given)], tmp_path / "s", workers=1)
    assert CrystalStore.open(tmp_path / "s").properties["m"].level == "atom"
    (row,) = rows(tmp_path / "s")
    assert (row["id"], row["reason"], row["detail"]) == (
        "c",
        "wrong_length",
        "m 7 entries for 8 atoms; no label is left",
    )


def test_an_existing_store_is_replaced_only_on_request(tmp_path: Path) -> None:
    source = lines(tmp_path / "a.jsonl", entry(salt(), "1", gap=5.0))
    assert run("import", source, "--out", tmp_path / "s") == 0
    with pytest.raises(InputError, match="--overwrite"):
        run("import", source, "--out", tmp_path / "s")
    assert run("import", source, "--out", tmp_path / "s", "--overwrite") == 0


def test_info(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = lines(tmp_path / "a.jsonl", entry(salt(), "1", band_gap=5.0), entry(salt("K", 6.3), "2", band_gap=4.0))
    run("import", source, "--out", tmp_path / "s")
    capsys.readouterr()
    assert run("info", tmp_path / "s") == 0
    words = capsys.readouterr().out.split("\n")
    assert any(line.split() == ["records", "read", "2"] for line in words)
    assert any(line.split() == ["band_gap", "eV", "crystal", "scalar", "2", "4", "4.5", "5"] for line in words)
    assert "elements (3): Cl K Na" in words
    assert "atoms per cell: min 8, median 8, max 8" in words
    with pytest.raises(InputError, match="no such store"):
        run("info", tmp_path / "none")


def test_real_sources(shared_data: Path, tmp_path: Path) -> None:
    sources = [shared_data / "devi2024" / "dc.json.gz", shared_data / "dielectric_petousis2017" / "data.jsonl.gz"]
    import_store(sources, tmp_path / "s", properties=["dc:"])
    store = CrystalStore.open(tmp_path / "s")
    counts = store.manifest["counts"]
    assert counts["records"] == 1056 + 965
    assert counts["rejected"] == 0
    both = store.labels(["dc", "poly_total"])
    both = both[~np.isnan(both).any(axis=1)]
    assert len(both) > 900  # the same quantity stands in both sources
    assert np.median(np.abs(both[:, 0] - both[:, 1])) < 0.01
    assert store.properties["dielectric_total"].unit == ""
