"""Which crystals train, validate and test, and which must not train."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from studies import atoms
from testing import compounds, make_store, other_cell, supercell

from datamodules import blocks
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.exclusion import excluded_rows
from datamodules.graph import NeighborRecipe
from datamodules.splits import Split, split_by_formula, split_from_lists, training_ids, trials_of
from datamodules.store import CrystalStore, write_store

IDS = [[f"gap:{row}"] for row in range(40)]
EVERY = np.ones(40, dtype=bool)
FORMULAS = [f"A{row % 30}B" for row in range(100)]


def split_formulas(formulas: list[str], *how: Any) -> Split:
    """All rows, split by these formulas."""
    codes = np.unique(formulas, return_inverse=True)[1]
    return split_by_formula(codes, np.ones(len(codes), dtype=bool), *how)


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
    split = split_formulas(FORMULAS, seed)
    found = parts(split)
    assert sorted(split.rows("all")) == list(range(100))
    formulas = [{FORMULAS[row] for row in rows} for rows in found.values()]
    assert sum(map(len, formulas)) == 30
    assert 10 <= len(found["test"]) <= 13
    assert 10 <= len(found["val"]) <= 13


def test_the_seed_decides_and_the_order_of_the_store_does_not() -> None:
    order = np.random.default_rng(1).permutation(100)
    shuffled = [FORMULAS[row] for row in order]
    one, same, other = (split_formulas(FORMULAS, seed) for seed in (0, 0, 1))
    turned = parts(split_formulas(shuffled, 0))
    assert parts(one) == parts(same) != parts(other)
    assert {part: {int(order[row]) for row in rows} for part, rows in turned.items()} == parts(one)


@pytest.mark.parametrize("size", [2, 10, 50])
def test_the_size_of_training_includes_validation(size: int) -> None:
    split = split_formulas([f"A{row}" for row in range(100)], 0, size)
    assert len(split.train) + len(split.val) == size
    assert len(split.test) == 10
    with pytest.raises(InputError, match="--train-size 91: only 90 crystals"):
        split_formulas([f"A{row}" for row in range(100)], 0, 91)


def test_shares_of_the_random_split() -> None:
    formulas = [f"A{row}" for row in range(200)]
    split = split_formulas(formulas, 0, None, (0.02, 0.3))
    assert [len(split.rows(part)) for part in ("train", "val", "test")] == [136, 4, 60]
    assert "2% validates, 30% tests" in split.how


def sorted_split(
    codes: npt.NDArray[Any], rows: npt.NDArray[Any], seed: int, train_size: int | None, shares: tuple[float, float]
) -> list[list[int]]:
    """Training, validation and test rows by sorting them: what the splits of all published results were made by."""
    _, group, sizes = np.unique(codes[rows], return_inverse=True, return_counts=True)
    shuffle = np.random.default_rng(seed).permutation(len(sizes))
    place = np.empty(len(sizes), dtype=np.int32)
    place[shuffle] = np.arange(len(sizes), dtype=np.int32)
    shuffled, ends = rows[np.argsort(place[group], kind="stable")], np.cumsum(sizes[shuffle])

    def whole_groups(start: int, count: int) -> int:
        if count <= 0 or not len(ends):
            return start
        return int(ends[min(int(np.searchsorted(ends, start + count)), len(ends) - 1)])

    num_test = whole_groups(0, round(len(rows) * shares[1]))
    available = len(rows) - num_test
    num_val = round((train_size or len(rows)) * shares[0])
    stop = whole_groups(num_test, max(1, num_val) if available > 1 and shares[0] > 0 else 0)
    test, val, train = np.split(shuffled, [num_test, stop])
    if train_size is not None:
        train = train[: max(1, train_size - len(val))]
    return [np.sort(part).tolist() for part in (train, val, test)]


@pytest.mark.parametrize("seed", range(4))
def test_counting_splits_as_sorting_did(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(seed)
    monkeypatch.setattr(blocks, "BLOCK", 37)
    for count, kinds in ((0, 1), (1, 1), (2, 2), (50, 1), (90, 80), (400, 30), (400, 3)):
        codes = random.integers(0, kinds, count).astype(np.int32)
        for share in (0.0, 0.02, 0.6, 1.0):
            labelled = random.random(count) < share
            rows = np.flatnonzero(labelled)
            for shares in ((0.1, 0.1), (0.0, 0.0), (0.0, 0.3), (0.3, 0.0), (0.5, 0.5), (0.02, 0.9)):
                for size in (None, 1, 2, 7, 0.3, 0.8, 1.0):
                    at_most = len(sorted_split(codes, rows, seed, None, (0.0, shares[1]))[0])
                    train_size = round(size * at_most) if isinstance(size, float) else size
                    if train_size is not None and train_size > at_most:
                        with pytest.raises(InputError, match="crystals with the label are left"):
                            split_by_formula(codes, labelled, seed, train_size, shares)
                        continue
                    found = split_by_formula(codes, labelled, seed, train_size, shares)
                    expected = sorted_split(codes, rows, seed, train_size, shares)
                    assert [found.rows(part).tolist() for part in ("train", "val", "test")] == expected
                    assert {found.rows(part).dtype for part in ("train", "val", "test")} == {np.dtype(np.int64)}


def test_formulas_are_numbered_as_they_are_sorted(tmp_path: Path) -> None:
    store = CrystalStore.open(make_store(tmp_path / "store", compounds(30)))
    formulas, codes = np.unique(store.formulas, return_inverse=True)
    many = CrystalStore(store.path, store.manifest, pa.concat_tables([store.table, store.table.slice(7, 9)]), "")
    for made, expected in ((store, codes), (many, np.concatenate([codes, codes[7:16]]))):
        found, names = made.formula_codes()
        assert found.tolist() == expected.tolist()
        assert names.to_pylist() == formulas.tolist()
    write_store(tmp_path / "empty", [], {}, [])
    found, names = CrystalStore.open(tmp_path / "empty").formula_codes()
    assert (len(found), len(names)) == (0, 0)


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
