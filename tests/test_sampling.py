"""In which order crystals are visited, how often, and by which process."""

from __future__ import annotations

from collections import Counter
from itertools import chain
from typing import Any

import numpy as np
import pytest

from datamodules.sampling import BatchedRows, temperature_weights


def test_temperature_draws_properties_first() -> None:
    labelled = np.zeros((1000, 2), dtype=bool)
    labelled[:900, 0] = labelled[890:, 1] = True
    for temperature, ratio in ((1.0, 900 / 110), (2.0, (900 / 110) ** 0.5), (1e9, 1.0)):
        weights = temperature_weights(labelled, temperature)
        assert weights.sum() == pytest.approx(1)
        first, second = weights[:890].sum(), weights[900:].sum()  # without those that carry both labels
        assert (first / 890 * 900) / (second / 100 * 110) == pytest.approx(ratio)
    alone = temperature_weights(np.column_stack([labelled[:, 0], np.zeros(1000, dtype=bool)]), 3.0)
    assert (alone[900:] == 0).all()


def batches(monkeypatch: pytest.MonkeyPatch, sampler: BatchedRows, world: int) -> list[list[Any]]:
    """Batches of every rank."""
    out = []
    for rank in range(world):
        monkeypatch.setattr(sampler, "_world", lambda rank=rank: (rank, world))
        made = list(sampler)
        assert len(made) == len(sampler)
        out.append(made)
    return out


@pytest.mark.parametrize("count", [32, 33, 35, 39, 8, 9])
def test_global_batches_do_not_depend_on_the_number_of_processes(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    rows = np.arange(100, 100 + count)
    one = batches(monkeypatch, BatchedRows(rows, 8, shuffle=True, seed=3), 1)[0]
    two = batches(monkeypatch, BatchedRows(rows, 4, shuffle=True, seed=3), 2)
    assert len(two[0]) == len(two[1])
    assert all(len(batch) for batch in (*two[0], *two[1]))
    joined = [sorted([*a, *b]) for a, b in zip(*two, strict=True)]
    alone = [sorted(batch) for batch in one]
    assert sorted(chain(*joined)) == sorted(chain(*alone)) == rows.tolist()
    if count % 8 != 1:  # a single crystal left over joins the batch before, where two processes share it
        assert joined == alone


def test_epochs_differ_and_repeat() -> None:
    sampler = BatchedRows(np.arange(50), 16, shuffle=True, seed=0)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        orders.append(np.concatenate(list(sampler)).tolist())
    assert orders[0] == orders[2] != orders[1]
    still = BatchedRows(np.arange(50), 16)
    assert np.concatenate(list(still)).tolist() == list(range(50))


def test_weighted_rows_are_drawn_as_often_as_they_weigh() -> None:
    weights = np.array([0.0, 1.0, 3.0, 0.0])
    sampler = BatchedRows(np.arange(4), 4, shuffle=True, weights=weights)
    drawn: Counter[int] = Counter()
    for epoch in range(300):
        sampler.set_epoch(epoch)
        drawn.update(np.concatenate(list(sampler)).tolist())
    assert set(drawn) == {1, 2}
    assert drawn[2] / drawn[1] == pytest.approx(3, rel=0.2)
