"""Predicting many structures: in order, in bounded memory, the same as one by one, and with a clean end."""

from __future__ import annotations

import csv
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import torch
from conftest import Command
from testing import batch_of, compounds, tiny_encoder

from datamodules.batching import build_graphs
from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN
from datamodules.readers import Record
from foundation import inference, prediction, preparing
from foundation.inference import Ensemble
from foundation.preparing import Item, Structure, prepare_all
from foundation.streaming import in_order
from foundation.training.module import MultiTaskModule
from heads import ScalarHead

RECIPE = NeighborRecipe()


class Deadly:
    """Ends the process that unpickles it."""

    def __reduce__(self) -> tuple[Any, tuple[int]]:
        return os._exit, (1,)


def records(count: int) -> list[Item]:
    return [(Record("made", i, crystal.id, crystal), "made.extxyz") for i, crystal in enumerate(compounds(count))]


def test_results_come_in_order_and_no_more_are_taken_than_there_is_room_for() -> None:
    taken, running, lock = [0], [0, 0], threading.Lock()

    def items() -> Iterator[int]:
        for number in range(50):
            taken[0] += 1
            yield number

    def work(number: int) -> int:
        with lock:
            running[0] += 1
            running[1] = max(running)
        time.sleep(0.002 * (number % 3))
        with lock:
            running[0] -= 1
        return number * number

    seen = []
    with ThreadPoolExecutor(3) as pool:
        for result in in_order(pool, work, items(), ahead=5):
            assert taken[0] - len(seen) <= 5
            seen.append(result)
    assert seen == [number * number for number in range(50)]
    assert 1 < running[1] <= 3
    with ThreadPoolExecutor(1) as pool, pytest.raises(ZeroDivisionError):
        list(in_order(pool, lambda number: 1 // number, [2, 1, 0, 1], ahead=2))


def test_processes_prepare_what_one_does() -> None:
    items = records(41)
    alone = list(prepare_all(items, RECIPE, chunk=4, workers=1))
    shared = list(prepare_all(iter(items), RECIPE, chunk=4, workers=2))
    assert [len(chunk) for chunk in shared] == [len(chunk) for chunk in alone] == [*[4] * 10, 1]
    for one, two in zip(chain(*alone), chain(*shared), strict=True):
        assert isinstance(two, Structure)
        assert (one.id, one.index, one.formula, one.problem) == (two.id, two.index, two.formula, None)
        assert one.edges is not None
        assert two.edges is not None
        for name in ("sender", "receiver", "shift", "cutoff"):
            np.testing.assert_array_equal(getattr(one.edges, name), getattr(two.edges, name))


def test_few_structures_start_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(workers: int) -> Any:
        raise AssertionError("a pool for a handful of structures")

    monkeypatch.setattr(preparing, "_processes", refuse)
    assert len(list(prepare_all(records(16), RECIPE, chunk=4, workers=8))) == 4
    with pytest.raises(AssertionError, match="handful"):
        list(prepare_all(records(17), RECIPE, chunk=4, workers=8))


def test_a_process_that_dies_is_an_error() -> None:
    items: list[Any] = [*records(30), Deadly(), *records(30)]
    with pytest.raises(InputError, match="a process that reads structures died"):
        list(prepare_all(items, RECIPE, chunk=4, workers=2))


def model(seed: int = 0) -> MultiTaskModule:
    encoder = tiny_encoder(seed)
    return MultiTaskModule(encoder, {"band_gap": ScalarHead(str(encoder.irreps_out), KNOWN["band_gap"])}).eval()


@pytest.mark.parametrize("limit", [1, 100, 10**6])
def test_batches_by_size_do_not_change_the_order(monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setitem(inference.EDGES_PER_BATCH, "cpu", limit)
    crystals, ensemble = compounds(20), Ensemble([model(0), model(1)])
    rows = np.random.default_rng(0).permutation(20)[:15]
    found = ensemble.predict_graphs(build_graphs(crystals, ensemble.recipe), rows)["band_gap"]
    expected = ensemble.predict([batch_of([crystals[row] for row in rows])])["band_gap"]
    assert found.shape == (15, 2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_threads_predict_what_one_does_and_leave_torch_as_it_was() -> None:
    ensemble, batches = Ensemble([model()]), [batch_of(compounds(3, seed)) for seed in range(8)]
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(ensemble.predict(batches)["band_gap"])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5, atol=1e-6)


def test_the_table_is_the_same_however_it_is_made(
    foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def table(name: str, *paths: Path) -> list[list[str]]:
        answer = foundation("predict", tiny_run, *paths, "--out", tmp_path / name)
        assert answer.code == 0, answer.err
        with (tmp_path / name).open(newline="") as file:
            return list(csv.reader(file))

    folder = tmp_path / "folder"
    folder.mkdir()
    frames = [ase.Atoms(c.numbers, cell=c.lattice, scaled_positions=c.frac_coords, pbc=True) for c in compounds(24)]
    ase.io.write(folder / "many.extxyz", frames[:12])
    for number, frame in enumerate(frames[12:]):
        ase.io.write(folder / f"{number:02d}.cif", frame)
    (folder / "bad.cif").write_text("data_x\n")
    alone = table("alone.csv", folder, tiny_store, folder)
    monkeypatch.setitem(prediction.CHUNK, "cpu", 3)
    monkeypatch.setattr(prediction, "READ_WHOLE", 2000)  # the file of many frames is read one by one
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    shared = table("shared.csv", folder, tiny_store, folder)
    assert len(alone) == len(shared) == 1 + 2 * 25 + 60
    for one, two in zip(alone, shared, strict=True):
        assert one[:5] == two[:5]
        if one[4] == "ok":
            np.testing.assert_allclose(np.array(one[5:], float), np.array(two[5:], float), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("how", ["dies", "interrupted"])
def test_an_early_end_leaves_nothing(
    foundation: Command, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    items: list[Any] = records(40)
    if how == "dies":
        items[30] = Deadly()
    else:

        def interrupt(*given: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(prediction, "_rows", interrupt)
    monkeypatch.setattr(prediction, "_items", lambda path: iter(items))
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1})
    monkeypatch.setitem(prediction.CHUNK, "cpu", 4)
    answer = foundation("predict", tiny_run, tmp_path, "--out", tmp_path / "p.csv")
    assert answer.code == (2 if how == "dies" else 130)
    assert answer.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
