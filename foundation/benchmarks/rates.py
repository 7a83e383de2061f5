"""Rates of the encoder that the configurations use: training, predicting, building graphs, and where time goes."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from datamodules.batching import CrystalBatch, GraphArrays, build_graphs
from datamodules.graph import neighbor_list
from foundation.benchmarks.crystals import BATCH_SIZE, benchmark_crystals, benchmark_spec, optimization
from foundation.benchmarks.machine import describe
from foundation.benchmarks.peers.contest import Clock, Rows
from foundation.checkpoint import build_module
from foundation.training.module import MultiTaskModule

STEPS = 12
PARTS = ("data", "wait", "forward", "backward", "optimizer")


def run_benchmark(data: Path | None, device: str = "cpu", batch_size: int = BATCH_SIZE) -> dict[str, Any]:
    """Measure everything, in single precision.

    A CPU-second is process time, so other work on the machine shows little; on several threads it counts all. On a
    GPU seconds are wall time.

    Args:
        data: JSON-lines file of Materials Project crystals, of which every eighth is taken; None for the
            prototypes that ship, unrelaxed.
        device: "cpu" or "cuda".
        batch_size: Crystals of a batch; all where there are fewer.

    Returns:
        Nested results: ``train``, ``predict``, ``graph``, ``data``, ``split``, ``encoder``, ``machine``.
    """
    crystals = benchmark_crystals(data)
    spec = benchmark_spec()
    torch.manual_seed(0)
    module = build_module(spec, optimization()).to(device)
    recipe = module.encoder.recipe
    graph = least_seconds(lambda: [neighbor_list(crystal, recipe) for crystal in crystals], "cpu", repeats=3)
    graphs = build_graphs(crystals, recipe)
    batches = batch_rows(len(graphs), batch_size)[:STEPS]
    size = len(batches[0])
    parts = training_parts(module, graphs, batches, device)
    step = {name: median(seconds) for name, seconds in parts.items()}
    busy = sum(step.values())
    key = "crystals_per_cpu_second" if device == "cpu" else "crystals_per_second"
    return {
        "train": {key: size / busy, "batch_size": size},
        "predict": {key: size / median(predicting_seconds(module, graphs, batches, device))},
        "graph": {
            "crystals_per_cpu_second": len(crystals) / graph,
            "edges_per_atom": float(graphs.edge_ptr[-1] / graphs.atom_ptr[-1]),
            "atoms_per_crystal": float(graphs.atom_ptr[-1] / len(graphs)),
        },
        "data": {
            "share_of_step": step["data"] / busy,
            "cached_crystals_per_cpu_second": size / step["data"],
        },
        "split": {name: seconds / busy for name, seconds in step.items()},
        "encoder": {
            "config": spec.encoder,
            "config_hash": spec.encoder_hash,
            "parameters": sum(p.numel() for p in module.encoder.parameters()),
        },
        "machine": {**describe(device), "crystals": str(data) if data else "shipped prototypes"},
    }


def batch_rows(count: int, size: int) -> list[Rows]:
    """Full batches of rows, in order; all rows in one where there are fewer."""
    size = min(size, count)
    return list(np.arange(count - count % size).reshape(-1, size))


def training_parts(
    module: MultiTaskModule, graphs: GraphArrays, batches: list[Rows], device: str
) -> dict[str, list[float]]:
    """Seconds of each part of every training step but the first two, which warm up.

    Returns:
        ``data`` (gathering the batch), ``wait`` (bringing it to the GPU; nothing on the CPU), ``forward``,
        ``backward`` and ``optimizer``.
    """
    module.train()
    head = module.heads[module.names[0]]
    optimizer = module.make_optimizer()
    parts: dict[str, list[float]] = {name: [] for name in PARTS}
    clock = Clock(device)
    warming = batches[:2]
    for number, rows in enumerate([*warming, *batches]):
        marks = [clock.seconds()]
        batch = graphs.gather(rows)
        marks.append(clock.seconds())
        batch = batch.to(device) if device != "cpu" else batch
        marks.append(clock.seconds())
        loss = head(module.encoder(batch), batch).abs().mean()
        marks.append(clock.seconds())
        loss.backward()
        marks.append(clock.seconds())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(clock.seconds())
        if number >= len(warming):
            for part, start, stop in zip(PARTS, marks, marks[1:], strict=False):
                parts[part].append(stop - start)
    return parts


def predicting_seconds(module: MultiTaskModule, graphs: GraphArrays, batches: list[Rows], device: str) -> list[float]:
    """Seconds to predict each batch, gathered beforehand, by the module as it is used outside of training."""
    module.eval()
    with torch.inference_mode():
        return [least_seconds(_predicting(module, graphs.gather(rows).to(device)), device) for rows in batches]


def least_seconds(work: Callable[[], object], device: str, repeats: int = 2) -> float:
    """Least seconds of a few repeats."""
    clock = Clock(device)
    seconds = []
    for _ in range(repeats):
        start = clock.seconds()
        work()
        seconds.append(clock.seconds() - start)
    return min(seconds)


def wall_and_busy(work: Callable[[], object]) -> tuple[float, float]:
    """Wall seconds of some work, and processor seconds of this process meanwhile."""
    wall, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - busy


def _predicting(module: MultiTaskModule, batch: CrystalBatch) -> Callable[[], object]:
    return lambda: module(batch)
