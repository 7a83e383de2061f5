from __future__ import annotations

import csv
import json
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.optimize import BFGS
from ase.units import GPa

from datamodules.errors import InputError
from foundation.quickstart import alloys
from foundation.quickstart.elastic import Emt, elastic_constants, relax
from foundation.quickstart.prototypes import ELEMENTS, Start, starts

ALL = {start.id: start for start in starts()}


def relaxed(id: str) -> Emt:
    emt = Emt(ALL[id].atoms())
    assert relax(emt)
    return emt


def test_kept_neighbors_change_nothing() -> None:
    rng = np.random.default_rng(0)
    emt = Emt(ALL["Cu3Au-D022"].atoms())
    atoms = emt.atoms
    for size in (1e-3, 1e-2, 0.05, 0.1, 1e-3):  # the larger ones outgrow the list's margin
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + size * rng.normal(size=(3, 3))), scale_atoms=True)
        atoms.positions += size * rng.normal(size=atoms.positions.shape)
        energy, stress, forces = emt()
        plain = atoms.copy()
        plain.calc = EMT()
        assert energy == pytest.approx(plain.get_potential_energy(), abs=1e-10)
        np.testing.assert_allclose(forces, plain.get_forces(), atol=1e-10)
        np.testing.assert_allclose(stress, plain.get_stress(), atol=1e-10)


def test_copper_has_the_lattice_constant_and_bulk_modulus_of_emt() -> None:
    volumes, energies = [], []
    for a in np.linspace(3.55, 3.63, 9):
        atoms = bulk("Cu", "fcc", a=a)
        atoms.calc = EMT()
        volumes.append(atoms.get_volume())
        energies.append(atoms.get_potential_energy())
    energy = np.poly1d(np.polyfit(volumes, energies, 4))
    volume = next(r.real for r in energy.deriv().roots if abs(r.imag) < 1e-9 and volumes[0] < r.real < volumes[-1])
    bulk_modulus = volume * energy.deriv(2)(volume) / GPa

    copper = relaxed("Cu-A1")
    elastic = elastic_constants(copper)
    assert (4 * copper.atoms.get_volume()) ** (1 / 3) == pytest.approx(3.59, abs=0.01)
    assert copper.atoms.get_volume() == pytest.approx(volume, rel=1e-4)
    assert elastic.moduli()[0] == pytest.approx(bulk_modulus, rel=5e-3)
    assert bulk_modulus == pytest.approx(134, rel=0.03)


def test_cubic_crystals_have_three_constants() -> None:
    tensor = elastic_constants(relaxed("Cu3Au-L12")).tensor
    c11, c12, c44 = tensor[0, 0], tensor[0, 1], tensor[3, 3]
    expected = np.zeros((6, 6))
    expected[:3, :3] = c12
    np.fill_diagonal(expected, [c11] * 3 + [c44] * 3)
    np.testing.assert_allclose(tensor, expected, atol=1e-3)
    assert c11 > c12 > 0 < c44


def test_moduli_of_a_cubic_tensor_follow_hill() -> None:
    elastic = elastic_constants(relaxed("Ag-A1"))
    c11, c12, c44 = elastic.tensor[0, 0], elastic.tensor[0, 1], elastic.tensor[3, 3]
    voigt = (c11 - c12 + 3 * c44) / 5
    reuss = 5 * (c11 - c12) * c44 / (4 * c44 + 3 * (c11 - c12))
    assert elastic.moduli() == pytest.approx(((c11 + 2 * c12) / 3, (voigt + reuss) / 2), rel=1e-4)


def test_constants_are_those_of_ions_that_follow_the_strain() -> None:
    emt = relaxed("Pt2Al-MoPt2")
    tensor = elastic_constants(emt).tensor
    column, strain = 0, 1e-3
    stresses = []
    for sign in (1, -1):
        strained = emt.atoms.copy()
        strained.set_cell(strained.cell.array @ np.diag([1 + sign * strain, 1, 1]), scale_atoms=True)
        strained.calc = EMT()
        clamped = strained.get_stress()
        assert BFGS(strained, logfile=None).run(fmax=1e-5, steps=200)
        stresses.append((strained.get_stress(), clamped))
    followed, held = ((stresses[0][k] - stresses[1][k]) / (2 * strain) / GPa for k in (0, 1))
    np.testing.assert_allclose(tensor[column], followed, atol=0.2)
    assert np.abs(held - followed).max() > 5  # the test would notice ions held in place


def test_moduli_do_not_depend_on_the_frame() -> None:
    emt = relaxed("CuPt-L11")
    turned = emt.atoms.copy()
    turned.rotate(37.0, (1, 2, 3), rotate_cell=True)
    assert elastic_constants(Emt(turned)).moduli() == pytest.approx(elastic_constants(emt).moduli(), rel=1e-4)


def test_starts_cover_every_metal_pair_and_triple() -> None:
    systems = Counter(start.system for start in ALL.values())
    assert len(ALL) == sum(1 for _ in starts())  # ids are distinct
    for size in (1, 2, 3):
        assert all(systems["-".join(chosen)] for chosen in combinations(ELEMENTS, size))


def test_every_start_has_the_composition_of_its_id() -> None:
    for start in ALL.values():
        named = Atoms(start.id.split("-")[0]).symbols.formula.reduce()[0].count()
        assert start.atoms().symbols.formula.reduce()[0].count() == named


@pytest.mark.parametrize(
    ("id", "reason"), [("Cu-A2", "unstable_elastic"), ("AuPt-B32", "unstable_elastic"), ("Cu3Au-L12", "")]
)
def test_unstable_crystals_are_rejected(id: str, reason: str) -> None:
    outcome = alloys.label(ALL[id])
    assert outcome.reason == reason
    assert (outcome.moduli is None) == bool(reason)


def test_a_crystal_that_relaxes_into_another_is_a_duplicate() -> None:
    chosen = [ALL["AlNi-B32"], ALL["AlNi-40"], ALL["AlNi-L10"]]
    outcomes = alloys.without_duplicates(alloys.label_all(chosen, workers=1))
    assert [o.reason for o in outcomes] == ["", "duplicate", ""]
    assert outcomes[1].detail == "relaxed into AlNi-B32"


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> list[Start]:
    chosen = [ALL[f"{element}-A1"] for element in ELEMENTS] + [ALL["Cu-A2"], ALL["AuCu-L10"], ALL["Cu3Au-L12"]]
    monkeypatch.setattr(alloys, "starts", lambda: iter(chosen))
    return chosen


def test_generate_writes_the_same_bytes_with_any_number_of_workers(few: list[Start], tmp_path: Path) -> None:
    one = alloys.generate(tmp_path / "one", workers=1)
    two = alloys.generate(tmp_path / "two", workers=2)
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in two]
    assert sorted(p.name for p in (tmp_path / "one").iterdir()) == ["alloys.jsonl", "alloys_rejected.csv"]

    records = [json.loads(line) for line in one[0].read_text().splitlines()]
    with one[1].open() as file:
        rejected = list(csv.DictReader(file))
    assert [r["id"] for r in records] == [start.id for start in few if start.id != "Cu-A2"]
    assert [(r["id"], r["reason"]) for r in rejected] == [("Cu-A2", "unstable_elastic")]
    assert all(r["labels"]["formation_energy_per_atom"] == 0 for r in records[:7])
    last = records[-1]
    assert last["system"] == "Au-Cu"
    assert last["units"]["shear_modulus"] == "GPa"
    assert last["labels"]["formation_energy_per_atom"] < 0
    volume = abs(np.linalg.det(last["structure"]["lattice_mat"])) / len(last["structure"]["elements"])
    assert volume == pytest.approx(last["labels"]["volume_per_atom"], rel=1e-6)


def test_generate_refuses_a_file_as_folder(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(InputError, match="is a file"):
        alloys.generate(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_split_keeps_held_out_pairs_from_training() -> None:
    systems = {start.id: start.system for start in ALL.values()}
    split = alloys.split_by_system(systems)
    assert (len(split.adaptation), len(split.test)) == (50, 100)
    parts = [set(split.pretraining), set(split.adaptation), set(split.test)]
    assert not any(a & b for a, b in combinations(parts, 2))
    trained = {systems[id] for id in (*split.pretraining, *split.adaptation)}
    for pair in alloys.HELD_OUT_PAIRS:
        assert not any(set(pair) <= set(system.split("-")) for system in trained)
    assert {systems[id] for id in split.test} <= set(split.held_out)
    assert trained.isdisjoint(split.held_out)
    assert sum(system.count("-") == 1 for system in split.held_out) == 3
    # the order in which the crystals come does not matter
    assert alloys.split_by_system(dict(reversed(systems.items()))) == split


def test_split_of_too_few_crystals_is_refused() -> None:
    with pytest.raises(InputError, match="ask for fewer"):
        alloys.split_by_system({"Cu3Au-L12": "Au-Cu"})
