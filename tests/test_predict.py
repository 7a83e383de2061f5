"""`foundation predict`: a row for every structure, whatever is wrong with it."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
from conftest import Answer, Command
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from testing import QUIET, batch_of, compounds

from datamodules.crystals import Crystal
from datamodules.store import CrystalStore
from foundation.checkpoint import find_members, load_checkpoint
from foundation.inference import Ensemble, cut_by_cost

FIXED = ["path", "index", "id", "formula", "status"]
COLUMNS = [*FIXED, "formation_energy_per_atom (eV/atom)", "band_gap (eV)"]


def structure(crystal: Crystal) -> Structure:
    return Structure(Lattice(crystal.lattice), crystal.numbers.tolist(), crystal.frac_coords)


def atoms(crystal: Crystal) -> ase.Atoms:
    return ase.Atoms(crystal.numbers, cell=crystal.lattice, scaled_positions=crystal.frac_coords, pbc=True)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of structures, most of them with something wrong."""
    made = tmp_path / "structures"
    (made / "deeper").mkdir(parents=True)
    good = structure(compounds(1)[0])
    good.to(filename=str(made / "good.cif"))
    good.to(filename=str(made / "deeper" / "POSCAR"))
    (made / "corrupt.cif").write_text("data_x\n_cell_length_a 5\nloop_\n_atom_site_label\n")
    disordered = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    CifWriter(disordered).write_file(made / "disordered.cif")
    Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.01, 0, 0]]).to(filename=str(made / "overlap.cif"))
    Structure(Lattice.cubic(30), ["Na"], [[0, 0, 0]]).to(filename=str(made / "isolated.cif"))
    Structure(Lattice.cubic(3.2), ["Pu", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(filename=str(made / "unseen.cif"))
    large = good.copy()
    large.make_supercell([5, 5, 5])
    large.to(filename=str(made / "large.cif"))
    assert len(large) > 200
    return made


def predict(foundation: Command, run: Path, out: Path, *paths: object) -> tuple[Answer, list[dict[str, str]]]:
    answer = foundation("predict", run, *paths, "--out", out)
    return answer, rows(out) if out.exists() else []


def test_a_folder_of_good_and_bad_files(foundation: Command, tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    answer, table = predict(foundation, tiny_run, tmp_path / "p.csv", folder)
    assert answer.code == 0, answer.err
    assert list(table[0]) == COLUMNS
    status = {Path(row["path"]).name: row["status"] for row in table}
    assert status == {
        "good.cif": "ok",
        "POSCAR": "ok",
        "large.cif": "ok",
        "corrupt.cif": "unreadable",
        "disordered.cif": "disordered",
        "overlap.cif": "overlapping_atoms",
        "isolated.cif": "no_neighbours",
        "unseen.cif": "unseen_element",
    }
    for row in table:
        predicted = [row[column] for column in COLUMNS[len(FIXED) :]]
        if row["status"] in ("ok", "unseen_element"):
            assert np.isfinite([float(value) for value in predicted]).all()
        else:
            assert predicted == ["", ""]
    values = {Path(row["path"]).name: float(row["band_gap (eV)"]) for row in table if row["status"] == "ok"}
    assert values["POSCAR"] == pytest.approx(values["good.cif"], rel=1e-3)
    assert values["large.cif"] == pytest.approx(values["good.cif"], rel=1e-3)  # the supercell
    assert "3 ok" in answer.out
    assert {file.name for file in tmp_path.iterdir()} == {"structures", "p.csv"}


def test_a_glob(foundation: Command, tiny_run: Path, folder: Path, tmp_path: Path) -> None:
    answer, table = predict(foundation, tiny_run, tmp_path / "p.csv", f"{folder}/**/*.cif")
    assert (answer.code, len(table)) == (0, 7)


def test_no_success_is_exit_1_and_still_a_table(
    foundation: Command, tiny_run: Path, folder: Path, tmp_path: Path
) -> None:
    bad = [folder / name for name in ("corrupt.cif", "disordered.cif", "isolated.cif")]
    answer, table = predict(foundation, tiny_run, tmp_path / "p.csv", *bad)
    assert answer.code == 1
    assert [row["status"] for row in table] == ["unreadable", "disordered", "no_neighbours"]


def test_a_file_of_many_frames(foundation: Command, tiny_run: Path, tmp_path: Path) -> None:
    crystals = compounds(5)
    ase.io.write(tmp_path / "many.extxyz", [atoms(crystal) for crystal in crystals])
    answer, table = predict(foundation, tiny_run, tmp_path / "p.csv", tmp_path / "many.extxyz")
    assert answer.code == 0, answer.err
    assert [row["index"] for row in table] == list("01234")
    assert {row["status"] for row in table} == {"ok"}


def test_a_store_keeps_its_ids_and_predictions_are_the_model_s(
    foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    answer, table = predict(foundation, tiny_run, tmp_path / "p.csv", tiny_store)
    assert answer.code == 0, answer.err
    store = CrystalStore.open(tiny_store)
    assert [row["id"] for row in table] == store.ids
    assert [row["formula"] for row in table] == store.formulas
    model = load_checkpoint(find_members(str(tiny_run))[0]).build()
    expected = Ensemble([model]).predict(
        [batch_of([store.crystal(row) for row in range(len(store))], model.encoder.recipe)]
    )
    for name, column in zip(model.names, COLUMNS[len(FIXED) :], strict=True):
        np.testing.assert_allclose([float(row[column]) for row in table], expected[name][:, 0], rtol=1e-4, atol=1e-5)


def test_large_cells_are_cut_into_batches_of_bounded_cost() -> None:
    costs = np.array([60_000, 60_000, 10, 10, 200_000, 5])
    assert [list(rows) for rows in cut_by_cost(np.arange(6), costs, 100_000)] == [[0], [1, 2, 3], [4], [5]]
    assert cut_by_cost(np.arange(0), np.arange(0), 100_000) == []


def test_an_ensemble_gives_its_spread(
    foundation: Command, tiny_run: Path, tiny_store: Path, folder: Path, tmp_path: Path
) -> None:
    words = ["adapt", "--pretrained", tiny_run, "--data.store", tiny_store, "--property", "shear_modulus", "--seeds", 2]
    out = tmp_path / "ensemble"
    answer = foundation(*words, "--strategy", "linear_probe", *QUIET, "--trainer.max_epochs", 1, "--out", out)
    assert answer.code == 0, answer.err
    answer, table = predict(foundation, out, tmp_path / "p.csv", folder / "good.cif", folder / "corrupt.cif")
    assert list(table[0]) == [*FIXED, "shear_modulus (GPa)", "shear_modulus (GPa) spread"]
    members = [
        predict(foundation, member, tmp_path / "m.csv", folder / "good.cif")[1] for member in find_members(str(out))
    ]
    values = [float(row[0]["shear_modulus (GPa)"]) for row in members]
    assert float(table[0]["shear_modulus (GPa)"]) == pytest.approx(np.mean(values), rel=1e-4)
    assert float(table[0]["shear_modulus (GPa) spread"]) == pytest.approx(np.std(values, ddof=1), rel=1e-1)
    assert table[1]["shear_modulus (GPa) spread"] == ""
    # What pretraining has seen counts as seen, even where the new labels hold fewer elements.
    assert table[0]["status"] == "ok"


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["RUN", "nowhere/*.cif"], "nowhere/*.cif"),
        (["nowhere.ckpt", "GOOD"], "nowhere.ckpt"),
        (["RUN", "GOOD", "--out", "nowhere/p.csv"], "nowhere"),
        (["RUN", "GOOD", "--ouf", "p.csv"], "--ouf"),
        (["RUN"], "PATH"),
    ],
)
def test_mistakes_are_one_line(
    foundation: Command,
    tiny_run: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: list[Any],
    culprit: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"RUN": tiny_run, "GOOD": folder / "good.cif"}
    answer = foundation("predict", *(places.get(word, word) for word in words))
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert culprit in answer.err
    assert {path.name for path in tmp_path.iterdir()} == {"structures"}
