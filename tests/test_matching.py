"""The same crystal is recognised in any setting; different crystals are kept apart."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from datamodules import matching
from datamodules.crystals import Crystal, as_crystal
from datamodules.matching import group_same, reduced_formula, space_group

NACL = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
CSCL_TYPE = Structure(Lattice.cubic(3.55), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])  # nearly the same volume


def scaled(structure: Structure, volume: float) -> Crystal:
    return as_crystal(structure.copy().scale_lattice(structure.volume * volume))


@pytest.mark.parametrize(
    ("numbers", "formula"),
    [([11, 17], "ClNa"), ([28, 13, 28, 28], "AlNi3"), ([26] * 4 + [8] * 6, "Fe2O3"), ([79], "Au"), ([8, 8], "O")],
)
def test_reduced_formula(numbers: list[int], formula: str) -> None:
    assert reduced_formula(np.array(numbers)) == formula


def test_space_group() -> None:
    assert space_group(as_crystal(NACL)) == 225
    assert space_group(as_crystal(CSCL_TYPE)) == 221
    overlapping = Crystal(np.eye(3), np.zeros((2, 3)), np.array([1, 1]))
    assert space_group(overlapping) == 0


def test_settings_of_one_crystal_are_one_group() -> None:
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(3, 3)))[0]
    conventional = as_crystal(NACL)
    order = np.random.default_rng(1).permutation(8)
    same = [
        conventional,
        as_crystal(NACL.get_primitive_structure()),
        as_crystal(NACL.make_supercell([2, 1, 1], in_place=False)),
        Crystal(conventional.lattice @ rotation, conventional.frac_coords[order] + 0.3, conventional.numbers[order]),
        scaled(NACL, 1.009),
    ]
    assert group_same(same).tolist() == [0] * 5


def test_other_formula_structure_or_volume_is_another_group() -> None:
    potassium = NACL.copy()
    potassium.replace_species({"Na": "K"})
    different = [as_crystal(NACL), as_crystal(potassium), as_crystal(CSCL_TYPE), scaled(NACL, 1.02)]
    assert abs(different[2].volume / 2 / (different[0].volume / 8) - 1) < 0.01
    assert group_same(different).tolist() == [0, 1, 2, 3]


def test_groups_do_not_depend_on_the_order() -> None:
    crystals = [scaled(NACL, volume) for volume in (1.0, 1.008, 1.016, 1.05)] + [as_crystal(CSCL_TYPE)]
    groups = group_same(crystals)
    assert groups.tolist() == [0, 0, 0, 1, 2]  # a chain: the ends agree through the middle
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(crystals))
        shuffled = group_same([crystals[i] for i in order])
        together = shuffled[:, None] == shuffled[None, :]
        assert (together == (groups[order][:, None] == groups[order][None, :])).all()
        assert shuffled[0] == 0


def test_unknown_space_groups_match_nothing() -> None:
    overlapping = Crystal(np.eye(3), np.zeros((2, 3)), np.array([1, 1]))
    assert group_same([overlapping, overlapping]).tolist() == [0, 1]
    assert group_same([]).tolist() == []


def test_two_processes_find_the_same_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    crystals = [as_crystal(NACL), as_crystal(CSCL_TYPE), scaled(NACL, 1.005)]
    monkeypatch.setattr(matching, "_PARALLEL_FROM", 2)
    assert group_same(crystals, workers=2).tolist() == [0, 1, 0]
