"""The cache of a store's graphs: the same graphs, compact, and never stale."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from testing import compounds, make_store, random_crystal

from datamodules import graph_cache
from datamodules.batching import build_graphs
from datamodules.graph import NeighborRecipe
from datamodules.graph_cache import cached_graphs
from datamodules.store import CrystalStore, write_store

RECIPE = NeighborRecipe()
ARRAYS = ("atom_ptr", "edge_ptr", "sender", "receiver", "shift", "cutoff")


def caches(store: CrystalStore) -> set[str]:
    return {path.name for path in (store.path / "graphs").iterdir()}


@pytest.mark.parametrize("chunk", [7, 20, 1000])
def test_a_cache_holds_what_is_found_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(graph_cache, "CHUNK", chunk)
    store = CrystalStore.open(make_store(tmp_path / "store", compounds(20)))
    found, cached = build_graphs([store.crystal(row) for row in range(20)], RECIPE), cached_graphs(store, RECIPE)
    for array in ARRAYS:
        np.testing.assert_array_equal(getattr(found, array), getattr(cached, array))
    assert len(caches(store)) == 1
    batch, again = found.gather([3, 19, 0]), cached.gather([3, 19, 0])
    assert batch.edge_vector.equal(again.edge_vector)


def test_indices_and_translations_take_the_smallest_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph_cache, "CHUNK", 1)
    far = random_crystal(2)
    far = replace(far, frac_coords=far.frac_coords + np.array([[0], [1000]]))
    crystals = [*compounds(2), far, random_crystal(300, seed=4)]
    write_store(tmp_path / "store", crystals, {}, [])
    store = CrystalStore.open(tmp_path / "store")
    cached = cached_graphs(store, RECIPE)
    assert (cached.sender.dtype, cached.receiver.dtype, cached.shift.dtype) == (np.uint16, np.uint16, np.int16)
    small = build_graphs(crystals[:2], RECIPE)
    assert (small.sender.dtype, small.receiver.dtype, small.shift.dtype) == (np.uint8, np.uint8, np.int8)
    vectors = build_graphs(crystals, RECIPE).gather([2]).edge_vector
    near = build_graphs([random_crystal(2)], RECIPE).gather([0]).edge_vector
    np.testing.assert_allclose(np.sort(vectors.norm(dim=1)), np.sort(near.norm(dim=1)), rtol=1e-5)


def test_another_recipe_code_or_content_is_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CrystalStore.open(make_store(tmp_path / "store", compounds(6)))
    sizes = [len(cached_graphs(store, recipe).sender) for recipe in (RECIPE, NeighborRecipe(6), RECIPE)]
    assert sizes[0] == sizes[2] > sizes[1]
    assert len(caches(store)) == 2
    monkeypatch.setattr(graph_cache, "CODE", "other")
    cached_graphs(store, RECIPE)
    assert len(caches(store)) == 3
    other = CrystalStore.open(make_store(tmp_path / "other", compounds(6, seed=1)))
    cached_graphs(other, RECIPE)
    assert not caches(store) & caches(other)


def test_a_shard_that_changed_has_new_graphs(tmp_path: Path) -> None:
    original = CrystalStore.open(make_store(tmp_path / "store", compounds(6)))
    found = cached_graphs(original, RECIPE)
    shutil.copytree(original.path, tmp_path / "copy")  # with its cache and its times
    copy = CrystalStore.open(tmp_path / "copy")
    assert cached_graphs(copy, RECIPE).cutoff.tolist() == found.cutoff.tolist()
    assert caches(copy) == caches(original)
    shard = tmp_path / "copy" / "crystals-00000.arrow"
    lattice = pa.FixedSizeListArray.from_arrays(pa.array(0.7 * original.lattices.reshape(-1)), 9)
    table = pa.Table.from_batches(original.table.to_batches()).set_column(
        original.table.schema.get_field_index("lattice"), original.table.schema.field("lattice"), lattice
    )
    size = shard.stat().st_size
    with pa.OSFile(str(shard), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    assert shard.stat().st_size == size  # so that the time alone tells
    changed = CrystalStore.open(tmp_path / "copy")
    expected = build_graphs([changed.crystal(row) for row in range(6)], RECIPE)
    graphs = cached_graphs(changed, RECIPE)
    np.testing.assert_array_equal(graphs.lattices, changed.lattices)
    np.testing.assert_array_equal(graphs.cutoff, expected.cutoff)
    assert graphs.cutoff.tolist() != found.cutoff.tolist()


def test_a_copy_without_its_times_has_a_cache_of_its_own(tmp_path: Path) -> None:
    original = CrystalStore.open(make_store(tmp_path / "store", compounds(6)))
    found = cached_graphs(original, RECIPE)
    shutil.copytree(original.path, tmp_path / "copy")
    for file in (tmp_path / "copy").iterdir():
        os.utime(file)
    copy = CrystalStore.open(tmp_path / "copy")
    np.testing.assert_array_equal(cached_graphs(copy, RECIPE).sender, found.sender)
    assert len(caches(copy)) == 2
    assert copy.content_hash == original.content_hash


def test_code_that_changed_is_another_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "graph.py"
    source.write_text("CUTOFF = 5")
    before = graph_cache.code_hash([str(source)])
    assert graph_cache.code_hash([str(source)]) == before
    source.write_text("CUTOFF = 6")
    assert graph_cache.code_hash([str(source)]) != before
    source.write_text("CUTOFF = 5")
    monkeypatch.setattr(graph_cache, "version", lambda package: "0.0")
    assert graph_cache.code_hash([str(source)]) != before


def test_a_store_without_crystals_has_graphs(tmp_path: Path) -> None:
    write_store(tmp_path / "store", [], {}, [])
    graphs = cached_graphs(CrystalStore.open(tmp_path / "store"), RECIPE)
    assert (len(graphs), len(graphs.sender)) == (0, 0)


def test_a_failed_cache_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CrystalStore.open(make_store(tmp_path / "store", compounds(6)))

    def full(*given: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(graph_cache, "_join", full)
    with pytest.raises(OSError, match="No space"):
        cached_graphs(store, RECIPE)
    assert caches(store) == set()
