"""Descriptors that do not depend on the cell, and the trees that learn from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from testing import compounds, other_cell, random_crystal, rock_salt, supercell

from datamodules.batching import build_graphs
from datamodules.crystals import Crystal
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from datamodules.properties import Property
from datamodules.store import write_store
from foundation.classical.descriptors import describe
from foundation.classical.trees import fit_trees, median_prediction
from foundation.quickstart.baselines import baseline_errors
from heads.pooling import composition

MODULUS = Property("modulus", "GPa")
Values = np.ndarray


def data_of(folder: Path, crystals: Sequence[Crystal], labels: Values | None = None) -> CrystalDataModule:
    """Crystals as a data module, a row each: only importing merges those that are the same."""
    values = np.arange(len(crystals), dtype=np.float64) if labels is None else labels
    write_store(folder / "store", crystals, {MODULUS.name: values}, [MODULUS])
    data = CrystalDataModule(str(folder / "store"))
    data.choose([MODULUS.name], NeighborRecipe())
    return data


def table_of(folder: Path, *crystals: Crystal) -> pd.DataFrame:
    # random splits need formulas in every part; the descriptors are of the first rows only
    data = data_of(folder, [*crystals, *compounds(30)])
    return describe(data, np.arange(len(crystals)))


@pytest.fixture(scope="module")
def learnable(tmp_path_factory: pytest.TempPathFactory) -> tuple[pd.DataFrame, Values]:
    """Descriptors of 200 compounds, and a property that follows from composition and volume."""
    crystals = compounds(200)
    data = data_of(tmp_path_factory.mktemp("learnable"), crystals)
    volume = np.array([crystal.volume / len(crystal) for crystal in crystals])
    spread = np.array([float(crystal.numbers.std()) for crystal in crystals])
    return describe(data, np.arange(200)), 4000 / volume + 3 * spread


def test_columns_are_named_finite_and_distinct(tmp_path: Path) -> None:
    table = table_of(tmp_path, rock_salt(), random_crystal())
    assert table.shape[0] == 2
    assert table.columns.is_unique
    assert (table.dtypes == np.float64).all()
    assert np.isfinite(table.to_numpy()).all()
    assert list(table.index) == [0, 1]


def test_no_rows_are_an_empty_table(learnable: tuple[pd.DataFrame, Values], tmp_path: Path) -> None:
    table = describe(data_of(tmp_path, compounds(30)), [])
    assert table.shape == (0, learnable[0].shape[1])
    assert list(table.columns) == list(learnable[0].columns)


def test_values_of_rock_salt(tmp_path: Path) -> None:
    salt = table_of(tmp_path, rock_salt()).iloc[0]
    assert salt["elements"] == 2
    assert salt["fractions, 2-norm"] == pytest.approx(np.sqrt(0.5))
    assert salt["volume per atom (Angstrom^3)"] == pytest.approx(2.82**3, rel=1e-6)
    assert salt["density (g/cm^3)"] == pytest.approx(2.16, rel=0.01)  # as measured
    assert salt["nearest neighbour (Angstrom), mean"] == pytest.approx(2.82, rel=1e-5)
    # six at the nearest distance, twelve more at sqrt(2) of it: 6 + 12 exp(1 - 8)
    assert salt["coordination, mean"] == pytest.approx(6 + 12 * np.exp(-7), rel=1e-3)
    assert salt["one-sidedness, max"] == pytest.approx(0, abs=1e-5)
    assert salt["electronegativity, deviation"] == pytest.approx((3.16 - 0.93) / 2)
    # bonds to the other element, but for the small weight of the second shell
    assert salt["difference in electronegativity, mean"] == pytest.approx(3.16 - 0.93, rel=5e-3)
    assert [salt[f"bonds along axis {axis}"] for axis in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=1e-5)


def test_an_atom_alone_has_its_next_neighbour_where_the_search_ended(tmp_path: Path) -> None:
    alone = Crystal(30 * np.eye(3), np.zeros((1, 3)), np.array([18]))
    row = table_of(tmp_path, alone).iloc[0]
    assert row["nearest neighbour (Angstrom), mean"] == 10.0
    assert row["coordination, mean"] == 0
    assert np.isfinite(row.to_numpy()).all()


@pytest.mark.parametrize("crystal", [rock_salt(), random_crystal(7, seed=4)], ids=["rock salt", "low symmetry"])
def test_the_cell_and_the_order_of_atoms_do_not_matter(crystal: Crystal, tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(len(crystal))
    shuffled = replace(crystal, frac_coords=crystal.frac_coords[order], numbers=crystal.numbers[order])
    same = [supercell(crystal, (2, 1, 2)), other_cell(crystal), shuffled]
    table = table_of(tmp_path, crystal, *same).to_numpy()
    scale = np.maximum(np.abs(table[0]), 1.0)
    np.testing.assert_allclose(table[1:] / scale, np.tile(table[0] / scale, (3, 1)), atol=2e-5)


def test_another_crystal_is_another_row(tmp_path: Path) -> None:
    stretched = replace(rock_salt(), lattice=1.1 * rock_salt().lattice)
    table = table_of(tmp_path, rock_salt(), stretched)
    differs = table.columns[~np.isclose(table.iloc[0], table.iloc[1], rtol=1e-4, atol=1e-6)]
    assert "packing" in differs
    assert "bond length (Angstrom), mean" in differs
    assert "electronegativity, mean" not in differs
    assert "coordination, mean" not in differs


def test_rows_come_in_the_order_asked_for(learnable: tuple[pd.DataFrame, Values], tmp_path: Path) -> None:
    data = data_of(tmp_path, compounds(200))
    rows = np.array([150, 3, 77])
    pd.testing.assert_frame_equal(describe(data, rows), learnable[0].loc[rows], check_names=False, rtol=1e-6)


def test_chunks_do_not_show(
    learnable: tuple[pd.DataFrame, Values], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("foundation.classical.descriptors.CHUNK", 64)
    table = describe(data_of(tmp_path, compounds(200)), np.arange(200))
    pd.testing.assert_frame_equal(table, learnable[0], rtol=1e-6)


def fractions_of(crystals: Sequence[Crystal]) -> Values:
    """[M, 104] share of every element."""
    graphs = build_graphs(crystals, NeighborRecipe())
    return composition(graphs.gather_atoms(np.arange(len(crystals)))).numpy()


def test_element_fractions() -> None:
    spread = np.array([[0, 0, 0], [0.3, 0, 0], [0, 0.3, 0]])
    salt, water = np.array([11, 17]), np.array([1, 1, 8])
    fractions = fractions_of([Crystal(5 * np.eye(3), spread[: len(each)], each) for each in (salt, water)])
    assert fractions.shape == (2, 104)
    assert fractions.sum(axis=1) == pytest.approx([1, 1])
    assert fractions[1, [1, 8]] == pytest.approx([2 / 3, 1 / 3])


@pytest.mark.parametrize("log", [False, True])
def test_trees_beat_the_median(learnable: tuple[pd.DataFrame, Values], log: bool) -> None:
    table, values = learnable
    labels = 10 ** (values / 100) if log else values
    trees = fit_trees(table[:150], labels[:150], replace(MODULUS, log=log))
    error = np.abs(trees.predict(table[150:]) - labels[150:]).mean()
    baseline = np.abs(median_prediction(labels[:150], 50) - labels[150:]).mean()
    assert error < 0.5 * baseline
    assert trees.predict(table[150:]).shape == (50,)


def test_the_same_seed_gives_the_same_trees(learnable: tuple[pd.DataFrame, Values]) -> None:
    table, values = learnable

    def predicted(seed: int) -> Values:
        return fit_trees(table[:60], values[:60], MODULUS, seed).predict(table[60:])

    np.testing.assert_array_equal(predicted(1), predicted(1))
    assert np.abs(predicted(1) - predicted(2)).max() > 0


def test_classes_are_probabilities(learnable: tuple[pd.DataFrame, Values]) -> None:
    table, values = learnable
    classes = (values > np.median(values)).astype(np.float64)
    predicted = fit_trees(table[:150], classes[:150], Property("stiff", kind="class")).predict(table[150:])
    assert ((predicted >= 0) & (predicted <= 1)).all()
    share = max(classes[150:].mean(), 1 - classes[150:].mean())
    assert ((predicted > 0.5) == classes[150:]).mean() > share + 0.1


@pytest.mark.parametrize("property", [MODULUS, replace(MODULUS, log=True), Property("stiff", kind="class")])
def test_three_labels_are_enough(learnable: tuple[pd.DataFrame, Values], property: Property) -> None:
    table, values = learnable
    labels = np.array([0.0, 1.0, 1.0]) if property.kind == "class" else values[:3]
    predicted = fit_trees(table[:3], labels, property).predict(table)
    assert np.isfinite(predicted).all()
    assert ((predicted >= labels.min() - 1e-9) & (predicted <= labels.max() + 1e-9)).all()


@pytest.mark.parametrize(
    ("labels", "property", "words"),
    [
        ([2.0] * 5, MODULUS, "two distinct values"),
        ([1.0] * 5, Property("stiff", kind="class"), "two distinct values"),
        ([3.0], MODULUS, "two distinct values"),
        ([0.0, 1.0, 2.0], Property("stiff", kind="class"), "labels 0 and 1"),
        ([0.0, 1.0, 2.0], replace(MODULUS, log=True), "positive labels, 1 are not"),
    ],
)
def test_labels_that_teach_nothing_are_one_line(
    learnable: tuple[pd.DataFrame, Values], labels: list[float], property: Property, words: str
) -> None:
    with pytest.raises(InputError, match=words) as caught:
        fit_trees(learnable[0][: len(labels)], np.array(labels), property)
    assert "\n" not in str(caught.value)
    assert property.name in str(caught.value)


def test_the_median_is_said_to_all() -> None:
    np.testing.assert_array_equal(median_prediction(np.array([1.0, 5.0, 100.0]), 4), [5.0] * 4)


def test_a_line_in_the_composition_is_found(tmp_path: Path) -> None:
    crystals = compounds(120)
    fractions = fractions_of(crystals)
    slopes = np.random.default_rng(0).normal(scale=50, size=104)
    errors = baseline_errors(data_of(tmp_path, crystals, fractions @ slopes))
    assert list(errors) == ["median predictor", "linear in composition"]
    assert errors["linear in composition"] < 0.1 * errors["median predictor"]
