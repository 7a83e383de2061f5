"""Which crystals train, validate and test, and which must not train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from studies import atoms
from testing import compounds, make_store, other_cell, supercell

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.exclusion import excluded_rows
from datamodules.graph import NeighborRecipe
from datamodules.splits import Split, split_by_formula, split_from_lists, training_ids, trials_of
from datamodules.store import CrystalStore

IDS = [[f"gap:{row}"] for row in range(40)]
EVERY = np.ones(40, dtype=bool)
FORMULAS = [f"A{row % 30}B" for row in range(100)]


def write(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    order = [int(row) for row in np.random.default_rng(0).permutation(30)]
    trials = {"trial1": {"10": order[:10], "30": order}, "trial2": {"10": order[10:20]}}
    return write(tmp_path / "splits" / "gap.json", {"test": [str(row) for row in range(30, 40)], **trials})


def test_a_list_keeps_its_order_and_its_last_tenth_validates(lists: Path) -> None:
    order = json.loads(lists.read_text())["trial1"]["30"]
    split = split_from_lists(lists, "trial1", 30, IDS, EVERY)
    assert split.train.tolist() == order[:27]
    assert split.val.tolist() == order[27:]
    assert split.test.tolist() == list(range(30, 40))
    assert split.notes == []
    assert len(split_from_lists(lists, "trial2", 10, IDS, EVERY).val) == 1
    assert len(split_from_lists(lists, "trial1", None, IDS, EVERY).train) == 27  # the largest size


def test_what_tests_never_trains_and_what_trains_never_validates(tmp_path: Path) -> None:
    # Records 1 and 31 are the same crystal, 1 in the training and 31 in the test list; 2 stands twice.
    twins = [[*IDS[0]], ["gap:1", "gap:31"], *IDS[2:]]
    file = write(tmp_path / "gap.json", {"test": ["31", "32"], "trial1": {"10": [1, 2, 3, 4, 5, 6, 7, 8, 9, 2]}})
    split = split_from_lists(file, "trial1", 10, twins, EVERY)
    assert split.train.tolist() == [2, 3, 4, 5, 6, 7, 8, 9]
    assert (split.val.tolist(), split.test.tolist()) == ([], [1, 32])
    assert "2 of 10 listed crystals left out" in split.notes[0]


def test_rows_without_the_label_are_left_out_and_counted(lists: Path) -> None:
    labelled = EVERY.copy()
    labelled[[30, json.loads(lists.read_text())["trial1"]["10"][0]]] = False
    split = split_from_lists(lists, "trial1", 10, IDS, labelled)
    assert (len(split.train), len(split.val), len(split.test)) == (8, 1, 9)
    assert split.notes[0].startswith("1 of 10 ")


def test_the_proxy_stands_in_for_an_empty_test_list(tmp_path: Path) -> None:
    file = write(tmp_path / "gap.json", {"test": [], "test_proxy": [7, 5], "trial1": {"2": [1, 2]}})
    assert split_from_lists(file, "trial1", 2, IDS, EVERY).test.tolist() == [5, 7]


def test_ids_are_those_of_the_source_that_the_file_is_named_after(lists: Path) -> None:
    mixed = [*[[f"other:{row}"] for row in range(40)], *IDS]
    split = split_from_lists(lists, "trial1", 10, mixed, np.ones(80, dtype=bool))
    assert min(split.train.min(), split.test.min()) >= 40


@pytest.mark.parametrize(
    ("trial", "size", "message"),
    [
        ("trial9", 10, "no trial 'trial9'; it has trial1, trial2"),
        ("trial1", 11, "no list of 11 crystals; it has 10, 30"),
    ],
)
def test_what_the_lists_do_not_have(lists: Path, trial: str, size: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_from_lists(lists, trial, size, IDS, EVERY)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"test": ["400"], "trial1": {"2": [1, 2]}}, "1 of 1 ids of test are not in the store, the first is '400'"),
        ({"trial1": {"2": [1, 2]}}, "expected an object with a list 'test'"),
        ([1, 2], "expected an object with a list 'test'"),
    ],
)
def test_lists_that_do_not_fit(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        split_from_lists(write(tmp_path / "gap.json", content), "trial1", 2, IDS, EVERY)


def test_an_id_that_tests_and_trains_is_refused(tmp_path: Path) -> None:
    content = {"test": ["31", "32"], "trial1": {"3": [1, 32, 31]}, "trial2": {"2": [1, 2]}}
    file = write(tmp_path / "gap.json", content)
    with pytest.raises(InputError, match=r"gap\.json: 2 ids of trial1, size 3, stand in the test list too, .*'31'"):
        split_from_lists(file, "trial1", 3, IDS, EVERY)
    assert len(split_from_lists(file, "trial2", 2, IDS, EVERY).train) == 1  # what is not used does no harm


def test_one_list_that_trains_is_a_trial_of_every_smaller_size(tmp_path: Path) -> None:
    file = write(tmp_path / "gap.json", {"train": list(range(30)), "test": list(range(30, 40))})
    lists = json.loads(file.read_text())
    whole = split_from_lists(file, "train", None, IDS, EVERY)
    assert (len(whole.train), len(whole.val), len(whole.test)) == (27, 3, 10)
    assert sorted([*whole.train, *whole.val]) == list(range(30))
    assert sorted(whole.val) != [27, 28, 29]  # a sorted list does not validate on its end
    ten = training_ids(file, lists, "train", 10)
    assert ten == training_ids(file, lists, "train", 20)[:10] == training_ids(file, lists, "train")[:10]
    assert sorted(ten) != list(range(10))
    assert split_from_lists(file, "train", 10, IDS, EVERY).how.startswith("lists of gap.json: train, size 10")
    for size in (0, 31):
        with pytest.raises(InputError, match=f"no list of {size} crystals; it has 30 and any fewer"):
            training_ids(file, lists, "train", size)


def test_trials_are_lists_by_size_and_nothing_else() -> None:
    lists = {"test": [1], "hp_tune": [2, 3], "variant": {"trial2": {"5": [4]}}, "b": {"20": [5], "3": [6]}}
    assert trials_of(lists) == {"b": [3, 20]}
    assert trials_of({"test": [1], "train": [2, 3]}) == {"train": [2]}


def parts(split: Split) -> dict[str, set[int]]:
    return {part: set(split.rows(part).tolist()) for part in ("train", "val", "test")}


@pytest.mark.parametrize("seed", range(5))
def test_no_formula_stands_in_two_parts(seed: int) -> None:
    split = split_by_formula(FORMULAS, np.arange(100), seed)
    found = parts(split)
    assert sorted(split.rows("all")) == list(range(100))
    formulas = [{FORMULAS[row] for row in rows} for rows in found.values()]
    assert sum(map(len, formulas)) == 30
    assert 10 <= len(found["test"]) <= 13
    assert 10 <= len(found["val"]) <= 13


def test_the_seed_decides_and_the_order_of_the_store_does_not() -> None:
    order = np.random.default_rng(1).permutation(100)
    shuffled = [FORMULAS[row] for row in order]
    one, same, other = (split_by_formula(FORMULAS, np.arange(100), seed) for seed in (0, 0, 1))
    turned = parts(split_by_formula(shuffled, np.arange(100), 0))
    assert parts(one) == parts(same) != parts(other)
    assert {part: {int(order[row]) for row in rows} for part, rows in turned.items()} == parts(one)


@pytest.mark.parametrize("size", [2, 10, 50])
def test_the_size_of_training_includes_validation(size: int) -> None:
    split = split_by_formula([f"A{row}" for row in range(100)], np.arange(100), 0, size)
    assert len(split.train) + len(split.val) == size
    assert len(split.test) == 10
    with pytest.raises(InputError, match="--train-size 91: only 90 crystals"):
        split_by_formula([f"A{row}" for row in range(100)], np.arange(100), 0, 91)


def test_shares_of_the_random_split() -> None:
    formulas = [f"A{row}" for row in range(200)]
    split = split_by_formula(formulas, np.arange(200), 0, None, (0.02, 0.3))
    assert [len(split.rows(part)) for part in ("train", "val", "test")] == [136, 4, 60]
    assert "2% validates, 30% tests" in split.how


def crystal_rows(store: CrystalStore, places: list[Path], by: Any) -> set[int]:
    candidates = np.arange(len(store))
    return set(candidates[excluded_rows(store, candidates, [str(place) for place in places], by)].tolist())


def test_exclusion_by_formula_and_by_structure(tmp_path: Path) -> None:
    crystals = compounds(12)
    squeezed = other_cell(crystals[3])
    squeezed = type(squeezed)(0.9 * squeezed.lattice, squeezed.frac_coords, squeezed.numbers)
    store = CrystalStore.open(make_store(tmp_path / "all", crystals))
    out = make_store(tmp_path / "out", [supercell(other_cell(crystals[7])), squeezed])
    same_formula = {row for row in range(12) if store.formulas[row] in (store.formulas[7], store.formulas[3])}
    assert crystal_rows(store, [out], "formula") == same_formula >= {3, 7}
    by_structure = crystal_rows(store, [out], "structure")
    assert 7 in by_structure
    assert 3 not in by_structure  # the same formula and symmetry at another volume


def test_exclusion_by_lists_takes_what_they_test(tmp_path: Path) -> None:
    crystals = compounds(12)
    store = CrystalStore.open(make_store(tmp_path / "all", crystals))
    records = [{"jid": c.id, "value": 1.0, "atoms": atoms(c)} for c in crystals]
    write(tmp_path / "sets" / "gap.json", records)
    lists = write(
        tmp_path / "sets" / "splits" / "gap.json", {"test": ["c2"], "test_proxy": ["c5"], "trial1": {"1": ["c1"]}}
    )
    expected = {row for row in range(12) if store.formulas[row] in (store.formulas[2], store.formulas[5])}
    for place in (lists, tmp_path / "sets"):
        assert crystal_rows(store, [place], "formula") == expected
    (tmp_path / "sets" / "gap.json").unlink()
    with pytest.raises(InputError, match=r"gap\.json: its crystals, .* are not there"):
        crystal_rows(store, [lists], "formula")


def test_excluded_crystals_leave_training_and_validation_and_are_counted(tiny_store: Path, tmp_path: Path) -> None:
    whole = CrystalDataModule(str(tiny_store))
    whole.choose(["band_gap"], NeighborRecipe())
    rows = [*whole.split.train[:3], *whole.split.val[:1], *whole.split.test[:2]]
    out = make_store(tmp_path / "out", [whole.store.crystal(int(row)) for row in rows])
    data = CrystalDataModule(str(tiny_store), exclude=[str(out)])
    data.choose(["band_gap"], NeighborRecipe())
    gone = {whole.store.formulas[row] for row in rows}
    assert not gone & {data.store.formulas[row] for row in [*data.split.train, *data.split.val]}
    assert data.split.test.tolist() == whole.split.test.tolist()
    lost = len(whole.split.train) - len(data.split.train)
    assert f"left out {lost} of {len(whole.split.train)} training" in data.split.notes[-1]


def test_derived_labels_follow_their_source(tiny_store: Path) -> None:
    data = CrystalDataModule(str(tiny_store))
    data.choose(["is_metal", "band_gap"], NeighborRecipe())
    metal, gap = data.labels.T
    assert ((metal == 1) == (gap <= 0)).all()
    assert (metal.isnan() == gap.isnan()).all()
