"""What a process needs for a store of ever more crystals: time to open it, and memory of its own.

Stores of millions of rows are made by repetition: shards of the same crystals under other formulas and labels, and the
cache of their graphs beside them, so that nothing is imported and no edges are looked for.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from datamodules.batching import GraphArrays, build_graphs
from datamodules.cache import kept
from datamodules.datamodule import CrystalDataModule
from datamodules.graph import NeighborRecipe
from datamodules.graph_cache import cache_key
from datamodules.properties import KNOWN
from datamodules.store import CrystalStore, write_store
from foundation.benchmarks.crystals import benchmark_crystals
from foundation.process import keep_freed_memory

SHARD_ROWS = 50_000
NAMES = ("formation_energy_per_atom", "band_gap", "e_above_hull")
BATCHES = 200


def compare_sizes(folder: Path, counts: list[int], temperature: float | None) -> list[dict[str, Any]]:
    """Make a store of each size, open it in one fresh process after another, and remove it.

    The first process writes the labels and the split beside the store; the second finds them, as all processes but one
    of a run do, and all of one that is started again.

    Args:
        folder: Where stores are made: a few hundred bytes a row.
        counts: Rows, rounded up to whole shards.
        temperature: As in ``CrystalDataModule``.

    Returns:
        What ``measure`` found for each, ``opened`` "first" and then "again".
    """
    results = []
    for count in counts:
        store = folder / f"rows-{count}"
        try:
            make_store(store, -(-count // SHARD_ROWS))
            command = [sys.executable, "-m", __name__, str(store), json.dumps(temperature)]
            for opened in ("first", "again"):
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                results.append({"opened": opened, **json.loads(answer.stdout)})
        finally:
            shutil.rmtree(store, ignore_errors=True)
    return results


def make_store(path: Path, shards: int) -> None:
    """A store of this many shards, with the cache of its graphs."""
    crystals = benchmark_crystals(None)
    labels = {name: np.zeros(len(crystals)) for name in NAMES}
    write_store(path, crystals, labels, [KNOWN[name] for name in NAMES])
    base, manifest = CrystalStore.open(path), json.loads((path / "manifest.json").read_text())
    places = np.resize(np.arange(len(crystals)), SHARD_ROWS)
    table = base.table.take(pa.array(places)).combine_chunks()
    names = [f"crystals-{number:05d}.arrow" for number in range(shards)]
    for number, name in enumerate(names):
        part = _relabelled(table, number)
        with pa.OSFile(str(path / name), "wb") as sink, pa.ipc.new_file(sink, part.schema) as writer:
            writer.write_table(part)
    content = hashlib.sha256(f"{base.content_hash} {shards}".encode()).hexdigest()
    manifest |= {"shards": names, "counts": {"crystals": shards * SHARD_ROWS}, "content_hash": content}
    (path / "manifest.json").write_text(json.dumps(manifest))
    recipe = NeighborRecipe()
    graphs = build_graphs(crystals, recipe)
    store = CrystalStore.open(path)
    kept(store, "graphs", cache_key(recipe), lambda folder: _repeat_graphs(graphs, places, shards, folder))


def _relabelled(table: pa.Table, number: int) -> pa.Table:
    random = np.random.default_rng(number)
    changed = {
        "id": pa.array([f"{number}-{row}" for row in range(len(table))]),
        # As many formulas as in a large database: one for about three crystals.
        "formula": pa.array([f"A{number}B{row}" for row in random.integers(0, SHARD_ROWS // 3, len(table)).tolist()]),
    }
    for name in NAMES:
        values = random.normal(size=len(table))
        changed[name] = pa.array(values, mask=random.random(len(table)) < 0.3)
    for name, column in changed.items():
        table = table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)
    return table


def _repeat_graphs(graphs: GraphArrays, places: Any, shards: int, folder: Path) -> None:
    """The arrays of a cache in which every shard has the crystals of these places."""
    for name in GraphArrays.__dataclass_fields__:
        values = getattr(graphs, name)
        if name.endswith("_ptr"):
            steps = np.tile(np.diff(values)[places], shards)
            np.save(folder / f"{name}.npy", np.concatenate([[0], np.cumsum(steps)]))
            continue
        ptr = graphs.atom_ptr if len(values) == graphs.atom_ptr[-1] else graphs.edge_ptr
        index = (
            places if len(values) == len(graphs) else np.concatenate([np.arange(ptr[p], ptr[p + 1]) for p in places])
        )
        part = values[index]
        shape = (shards * len(part), *part.shape[1:])
        whole = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", part.dtype, shape)
        for number in range(shards):
            whole[number * len(part) : (number + 1) * len(part)] = part


def measure(path: Path, temperature: float | None) -> dict[str, Any]:
    """Open a store in this process and draw batches from it.

    Returns:
        ``rows``; seconds to ``open`` the store, to ``split`` it and to ``order`` an epoch; ``batches_per_second``; MiB
        of memory of this process that are not a mapped file, ``before``, ``after`` and at most (``peak``); bytes a row
        at that peak, what any number of rows needs included (``peak_row``), and those that the sampler holds
        (``index``).
    """
    keep_freed_memory()  # as every command does
    result: dict[str, Any] = {"before": _own_memory()}
    peak = _Peak()
    with peak:
        clock = time.perf_counter()
        data = CrystalDataModule(str(path), temperature=temperature)
        result["open"], clock = time.perf_counter() - clock, time.perf_counter()
        data.choose(list(NAMES), NeighborRecipe())
        result["split"], clock = time.perf_counter() - clock, time.perf_counter()
        loader = data.train_dataloader()
        batches = iter(loader)
        next(batches)
        result["order"], clock = time.perf_counter() - clock, time.perf_counter()
        for _ in itertools.islice(batches, BATCHES):
            pass
        result["batches_per_second"] = BATCHES / (time.perf_counter() - clock)
    sampler: Any = loader.sampler
    result |= {"rows": len(data.store), "after": _own_memory(), "peak": peak.largest}
    result["peak_row"] = (result["peak"] - result["before"]) * 2**20 / result["rows"]
    result["index"] = sampler.nbytes / len(sampler.rows)
    return result


class _Peak:
    """The most memory of its own that this process has while the block runs."""

    def __init__(self) -> None:
        self.largest = 0.0
        self._done = threading.Event()

    def __enter__(self) -> None:
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.005):
            self.largest = max(self.largest, _own_memory())


def _own_memory() -> float:
    """MiB in memory that are no part of a file."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]), json.loads(sys.argv[2]))))
