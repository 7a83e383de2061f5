"""In which order crystals are visited, how often, and by which process."""

from __future__ import annotations

import mmap
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from testing import random_crystal

from datamodules.batching import GraphArrays, build_graphs
from datamodules.datamodule import CrystalDataModule
from datamodules.dealing import Work, equal_shares, shares_by_rounds
from datamodules.graph import NeighborRecipe
from datamodules.loading import AheadLoader
from datamodules.sampling import BatchedRows, temperature_weights


def test_temperature_draws_properties_first() -> None:
    labels, rows = np.full((1000, 2), np.nan), np.arange(1000)
    labels[:900, 0] = labels[890:, 1] = 7.0
    for temperature, ratio in ((1.0, 900 / 110), (2.0, (900 / 110) ** 0.5), (1e9, 1.0)):
        weights = temperature_weights(labels, rows, temperature)
        assert weights.sum() == pytest.approx(1)
        first, second = weights[:890].sum(), weights[900:].sum()  # without those that carry both labels
        assert (first / 890 * 900) / (second / 100 * 110) == pytest.approx(ratio)
    alone = temperature_weights(np.column_stack([labels[:, 0], np.full(1000, np.nan)]), rows, 3.0)
    assert (alone[900:] == 0).all()
    some = temperature_weights(labels, rows[800:900], 1.0)
    assert some[:90] == pytest.approx(1 / 110)
    assert some[90:] == pytest.approx(2 / 110)


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


def costs_of(count: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """Mostly light rows with a tail of heavy ones."""
    return np.ceil(np.random.default_rng(seed).lognormal(3.0, 1.5, count)).astype(np.int64)


@pytest.mark.parametrize("count", [1, 7, 64, 301, 302])
@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_batches_have_a_bounded_cost_and_every_epoch_as_many(
    monkeypatch: pytest.MonkeyPatch, count: int, world: int, shuffle: bool, weighted: bool
) -> None:
    costs, rows, limit = costs_of(count), np.arange(500, 500 + count), 600
    weights = np.linspace(0.1, 1, count) if weighted and shuffle else None
    sampler = BatchedRows(rows, 16, shuffle, seed=3, weights=weights, costs=costs, max_cost=limit)
    lengths, orders = set(), set()
    for epoch in range(3):
        sampler.set_epoch(epoch)
        dealt = batches(monkeypatch, sampler, world)
        assert len({len(made) for made in dealt}) == 1
        lengths.add(len(dealt[0]))
        visited = [int(row) for made in dealt for batch in made for row in batch]
        orders.add(tuple(visited))
        assert len(visited) == count
        if weights is None:
            assert sorted(visited) == rows.tolist()
        for batch in chain(*(made[:-1] for made in dealt)):
            assert len(batch) == 1 or costs[batch - 500].sum() <= limit
            assert 1 <= len(batch) <= 16
    assert len(lengths) == 1
    if count > 7:
        assert len(orders) == (3 if shuffle else 1)


def test_a_bound_that_is_not_met_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, costs = np.arange(100), costs_of(100)
    loose = float(np.sort(costs)[-16:].sum())
    for world in (1, 2):
        plain, bounded, tight = (
            batches(monkeypatch, BatchedRows(rows, 16, shuffle=True, seed=1, **more), world)
            for more in ({}, {"costs": costs, "max_cost": loose}, {"costs": costs, "max_cost": loose - 1})
        )
        assert [[list(batch) for batch in made] for made in plain] == [[list(b) for b in made] for made in bounded]
        assert [list(batch) for batch in plain[0]] != [list(batch) for batch in tight[0]]


def test_large_cells_take_part_in_other_batches_every_epoch() -> None:
    costs = np.array([10] * 90 + [500] * 10)
    sampler = BatchedRows(np.arange(100), 16, shuffle=True, costs=costs, max_cost=600)
    company: dict[int, set[int]] = {row: set() for row in range(90, 100)}
    for epoch in range(5):
        sampler.set_epoch(epoch)
        for batch in sampler:
            heavy = [int(row) for row in batch if row >= 90]
            assert len(heavy) <= 1
            for row in heavy:
                company[row] |= {int(other) for other in batch if other < 90}
    assert all(len(others) > 5 for others in company.values())


def test_batches_gathered_ahead_are_the_same_batches(tiny_store: Path) -> None:
    data = CrystalDataModule(str(tiny_store), batch_size=7)
    data.choose(["band_gap"], NeighborRecipe())
    plain = data.train_dataloader()
    ahead = AheadLoader(plain.dataset, sampler=plain.sampler, batch_size=None)
    assert len(ahead) == len(plain)
    for one, two in zip(plain, ahead, strict=True):
        assert one.row.equal(two.row)
        assert one.edge_vector.equal(two.edge_vector)
    next(iter(ahead))  # and leaving early does not hang


def test_data_of_large_cells_are_cut_by_edges(tiny_store: Path) -> None:
    data = CrystalDataModule(str(tiny_store), batch_size=16, max_edges=300)
    data.choose(["band_gap"], NeighborRecipe())
    for loader in (data.train_dataloader(), data.val_dataloader(), data.loader("all")):
        made = list(loader)
        assert len(made) == len(loader)
        assert all(len(batch.row) == 1 or batch.edge_index.shape[1] <= 300 for batch in made)
    assert torch.cat([batch.row for batch in data.loader("all")]).tolist() == data.split.rows("all").tolist()


@pytest.mark.parametrize("world", [2, 3, 8])
def test_shares_of_a_batch_are_of_equal_work(tiny_store: Path, monkeypatch: pytest.MonkeyPatch, world: int) -> None:
    random = np.random.default_rng(0)
    crystals = [
        random_crystal(int(size), seed) for seed, size in enumerate(random.lognormal(1.5, 0.7, 60).astype(int) + 1)
    ]
    work = Work(build_graphs(crystals, NeighborRecipe()))
    sampler = BatchedRows(np.arange(60), 60 // world, shuffle=True)
    plain = batches(monkeypatch, sampler, world)
    sampler.work = work
    dealt = batches(monkeypatch, sampler, world)
    again = batches(monkeypatch, sampler, world)
    for step in range(len(dealt[0])):
        before, after = ([rank[step] for rank in ranks] for ranks in (plain, dealt))
        assert sorted(chain(*before)) == sorted(chain(*after))
        assert all(len(share) for share in after)
        assert [list(share) for share in after] == [list(rank[step]) for rank in again]
    unequal = [
        max(loads) / np.mean(loads) for loads in ([work.of(rank[0]).sum() for rank in r] for r in (plain, dealt))
    ]
    assert unequal[1] < 1.1 < unequal[0]


def test_shares_keep_to_the_bound_of_edges() -> None:
    """Where shares of equal work would cost one process too much, they are of like crystals instead."""
    random = np.random.default_rng(1)
    for _ in range(200):
        cost = np.ceil(random.lognormal(3, 1.2, random.integers(4, 40))).astype(np.int64)
        world = int(random.integers(2, 5))
        rounds = sum(max(cost[start : start + world]) for start in range(0, len(cost), world))
        shares = shares_by_rounds(cost, world)
        assert sorted(chain(*shares)) == list(range(len(cost)))
        assert max(cost[share].sum() for share in shares) <= rounds
        equal = equal_shares(cost, world)
        assert sorted(chain(*equal)) == list(range(len(cost)))
        assert max(cost[share].sum() for share in equal) <= cost.sum() / world + cost.max()


def test_nothing_that_a_loader_keeps_grows_with_the_store_but_the_order(tiny_store: Path) -> None:
    """Arrays of graphs and labels are views of files; the sampler has 16 bytes a row at most."""
    data = CrystalDataModule(str(tiny_store), temperature=2.0)
    data.choose(["band_gap", "shear_modulus"], NeighborRecipe())
    for name in GraphArrays.__dataclass_fields__:
        array: Any = getattr(data.graphs, name)
        while array.base is not None and not isinstance(array, np.memmap):
            array = array.base
        assert isinstance(array, np.memmap | mmap.mmap), name
    changed = data.labels.clone()
    data.labels[0] = 7.0  # stays in this process
    other = CrystalDataModule(str(tiny_store))
    other.choose(["band_gap", "shear_modulus"], NeighborRecipe())
    assert other.labels.nan_to_num().equal(changed.nan_to_num())
    sampler: Any = data.train_dataloader().sampler
    assert sampler.nbytes == 13 * len(sampler.rows)  # 8 are the split's, 1 the weight's, 4 the order's
    bounded = CrystalDataModule(str(tiny_store), temperature=2.0, max_edges=300)
    bounded.choose(["band_gap", "shear_modulus"], NeighborRecipe())
    sampler = bounded.train_dataloader().sampler
    few = 8 * 8  # costs of the classes
    assert 15 * len(sampler.rows) < sampler.nbytes <= 15 * len(sampler.rows) + few
