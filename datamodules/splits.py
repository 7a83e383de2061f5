"""Which crystals train, validate and test: from given lists or grouped by formula."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from datamodules.blocks import blocks
from datamodules.errors import InputError

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Split:
    """Rows of a store.

    Attributes:
        train: Rows to fit on.
        val: Rows to validate on.
        test: Rows to report on.
        how: How the split was made, in one line.
        notes: What had to be left out, one line each.
    """

    train: Rows
    val: Rows
    test: Rows
    how: str
    notes: list[str] = field(default_factory=list)

    def rows(self, name: str) -> Rows:
        """Rows of "train", "val", "test" or "all"."""
        if name == "all":
            return np.sort(np.concatenate([self.train, self.val, self.test]))
        return {"train": self.train, "val": self.val, "test": self.test}[name]


def split_from_lists(
    file: Path,
    trial: str,
    train_size: int | None,
    source_ids: Sequence[Sequence[str]],
    labelled: npt.NDArray[np.bool_],
    val_share: float = 0.1,
) -> Split:
    """The split that a file of id lists gives: ``{"test": [...], "trial1": {"100": [...]}}``.

    The list keeps its order; its last part validates, so the size includes the validation crystals. Where the
    test list is empty, ``test_proxy`` stands in. A crystal whose twin stands in the test list tests and does not
    train. A file with one list that trains, ``{"train": [...], "test": [...]}``, has the one trial "train".

    Args:
        file: JSON file; its stem names the source whose ids it lists, where the store has such a source.
        trial: Which trial.
        train_size: Which of the trial's sizes; None takes its largest.
        source_ids: ``source:id`` of every record behind each row of the store.
        labelled: [M] rows that carry the label wanted.
        val_share: Share of the list that validates; 0 for none.

    Raises:
        InputError: For a missing file, trial, size or id, or one id in both lists.
    """
    lists = read_lists(file)
    ids = training_ids(file, lists, trial, train_size)
    row_of = _rows_by_id(source_ids, file.stem)
    test = np.unique(_look_up(test_ids(lists), row_of, file, "test"))
    listed = _look_up(ids, row_of, file, trial)
    num_val = max(1, round(len(listed) * val_share)) if len(listed) > 1 and val_share > 0 else 0
    num_fit = len(listed) - num_val
    seen: set[int] = set(test.tolist())
    parts: tuple[list[int], list[int]] = ([], [])
    for position, row in enumerate(listed.tolist()):
        if row not in seen and labelled[row]:
            parts[int(position >= num_fit)].append(row)
            seen.add(row)
    dropped = len(listed) - len(parts[0]) - len(parts[1])
    notes = [
        f"{dropped} of {len(listed)} listed crystals left out: twins in the list or in the test list, or unlabelled"
    ]
    return Split(
        train=np.array(parts[0], dtype=np.int64),
        val=np.array(parts[1], dtype=np.int64),
        test=test[labelled[test]],
        how=f"lists of {file.name}: {trial}, size {len(ids)}, "
        f"{f'the last {num_val} validate' if num_val else 'all train'}",
        notes=notes if dropped else [],
    )


def split_by_formula(
    codes: npt.NDArray[np.integer],
    labelled: npt.NDArray[np.bool_],
    seed: int,
    train_size: int | None = None,
    shares: tuple[float, float] = (0.1, 0.1),
) -> Split:
    """A seeded random split in which no reduced formula stands in two parts.

    Args:
        codes: [M] number of each row's reduced formula among those of the store, sorted, so that the split does not
            depend on the order of the store.
        labelled: [M] rows to split.
        seed: Seed of the shuffle.
        train_size: Crystals to fit and validate on together; None takes all that do not test.
        shares: Share of these rows that validates (of ``train_size`` where that is given), and that tests.

    Raises:
        InputError: If there are fewer rows than asked for.
    """
    val_share, test_share = shares
    formulas, ends = _shuffled_formulas(codes, labelled, seed)
    count = int(labelled.sum())
    num_test = _whole_groups(ends, 0, round(count * test_share))
    available = count - num_test
    if train_size is not None and train_size > available:
        raise InputError(
            f"--train-size {train_size}: only {available} crystals with the label are left beside the test set"
        )
    num_val = round((train_size or count) * val_share)
    stop = _whole_groups(ends, num_test, max(1, num_val) if available > 1 and val_share > 0 else 0)
    end = count if train_size is None else min(count, max(stop + 1, num_test + train_size))
    test, val, train = (
        _rows_between(codes, labelled, formulas, ends, *places)
        for places in ((0, num_test), (num_test, stop), (stop, end))
    )
    return Split(
        train=train,
        val=val,
        test=test,
        how=f"random by reduced formula, seed {seed}, {val_share:.0%} validates, {test_share:.0%} tests",
    )


def read_lists(file: Path) -> dict[str, Any]:
    """Read a file of id lists.

    Raises:
        InputError: If it does not exist or is not such a file.
    """
    if not file.is_file():
        raise InputError(f"--data.splits {file}: no such file")
    try:
        lists = json.loads(file.read_text())
    except ValueError as error:
        raise InputError(f"--data.splits {file}: not JSON ({error})") from error
    if not isinstance(lists, dict) or not test_ids(lists):
        raise InputError(f"--data.splits {file}: expected an object with a list 'test' or 'test_proxy'")
    return lists


def trials_of(lists: Mapping[str, Any]) -> dict[str, list[int]]:
    """The trials of a file of id lists: name -> its sizes, ascending; one list "train" has one size, its length."""
    trials: dict[str, list[int]] = {}
    for name, given in lists.items():
        if isinstance(given, dict) and (sizes := sorted(int(size) for size in given if str(size).isdigit())):
            trials[name] = sizes
    if isinstance(lists.get("train"), list):
        trials["train"] = [len(lists["train"])]
    return trials


def training_ids(file: Path, lists: Mapping[str, Any], trial: str, size: int | None = None) -> list[Any]:
    """The ids that fit and validate in one trial.

    Args:
        file: Where the lists come from, for messages.
        lists: What ``read_lists`` gave.
        trial: Name of the trial.
        size: Which of its sizes; None takes the largest. The trial "train" is one list in a shuffled order that is
            always the same, and every size is a beginning of it.

    Raises:
        InputError: If there is no such trial or size, or an id tests as well.
    """
    trials = trials_of(lists)
    if trial not in trials:
        raise InputError(f"{file}: no trial {trial!r}; it has {', '.join(sorted(trials)) or 'none'}")
    size = trials[trial][-1] if size is None else size
    given = lists[trial]
    if isinstance(given, list):
        if not 0 < size <= len(given):
            raise InputError(f"{file}: {trial} has no list of {size} crystals; it has {len(given)} and any fewer")
        # Shuffled at full length too: the end of the list validates, and it may be sorted.
        ids = [given[index] for index in np.random.default_rng(0).permutation(len(given))[:size]]
    else:
        if size not in trials[trial]:
            raise InputError(f"{file}: {trial} has no list of {size} crystals; it has {_listed(trials[trial])}")
        ids = list(next(ids for key, ids in given.items() if str(key).isdigit() and int(key) == size))
    both = sorted(set(map(str, test_ids(lists))) & set(map(str, ids)))
    if both:
        raise InputError(
            f"{file}: {len(both)} ids of {trial}, size {size}, stand in the test list too, the first is {both[0]!r}; "
            "take them out of one of the two"
        )
    return ids


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def test_ids(lists: Mapping[str, Any]) -> list[Any]:
    """The ids that test: ``test``, or ``test_proxy`` where that is empty."""
    return list(lists.get("test") or lists.get("test_proxy") or [])


test_ids.__test__ = False  # type: ignore[attr-defined]  # not for pytest to collect


def _rows_by_id(source_ids: Sequence[Sequence[str]], stem: str) -> dict[str, int]:
    own: dict[str, int] = {}
    every: dict[str, int] = {}
    for row, names in enumerate(source_ids):
        for name in names:
            source, _, identifier = name.partition(":")
            every.setdefault(identifier, row)
            if source == stem:
                own.setdefault(identifier, row)
    return own or every


def _look_up(ids: Sequence[Any], row_of: dict[str, int], file: Path, name: str) -> Rows:
    missing = [str(identifier) for identifier in ids if str(identifier) not in row_of]
    if missing:
        raise InputError(
            f"{file}: {len(missing)} of {len(ids)} ids of {name} are not in the store, the first is {missing[0]!r}; "
            "import the source that these lists belong to"
        )
    return np.array([row_of[str(identifier)] for identifier in ids], dtype=np.int64)


def _shuffled_formulas(codes: npt.NDArray[np.integer], labelled: npt.NDArray[np.bool_], seed: int) -> tuple[Rows, Rows]:
    """[G] formulas of labelled rows in a seeded order, and [G] where each ends if its rows stand together."""
    sizes = np.zeros(int(codes.max(initial=-1)) + 1, dtype=np.int64)
    for block in blocks(len(codes)):
        np.add.at(sizes, codes[block][labelled[block]], 1)
    present = np.flatnonzero(sizes)
    formulas = present[np.random.default_rng(seed).permutation(len(present))]
    return formulas, np.cumsum(sizes[formulas])


def _rows_between(
    codes: npt.NDArray[np.integer],
    labelled: npt.NDArray[np.bool_],
    formulas: Rows,
    ends: Rows,
    start: int,
    stop: int,
) -> Rows:
    """Ascending rows from one place to another of the labelled rows, ordered by ``formulas`` and then by row.

    A formula begins at the first place; one that the second cuts gives its first rows.
    """
    if start == stop:
        return np.zeros(0, dtype=np.int64)
    first, last = np.searchsorted(ends, start, side="right"), np.searchsorted(ends, stop)
    wanted = np.zeros(int(codes.max()) + 1, dtype=bool)
    wanted[formulas[first : last + 1]] = True
    chosen = np.empty(len(codes), dtype=bool)
    for block in blocks(len(codes)):
        chosen[block] = labelled[block] & wanted[codes[block]]
    if surplus := int(ends[last]) - stop:
        chosen[np.flatnonzero(labelled & (codes == formulas[last]))[-surplus:]] = False
    return np.flatnonzero(chosen)


def _whole_groups(ends: Rows, start: int, count: int) -> int:
    """Where at least ``count`` rows in whole groups end that begin at ``start``; the last end if there are fewer."""
    if count <= 0 or not len(ends):
        return start
    return int(ends[min(int(np.searchsorted(ends, start + count)), len(ends) - 1)])
