"""How cost grows: with the atoms and edges of a batch, and with the number of crystals."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch

from datamodules.batching import GraphArrays, build_graphs
from datamodules.crystals import Crystal
from foundation.benchmarks.crystals import BATCH_SIZE
from foundation.benchmarks.peers.contest import Clock, Rows
from foundation.benchmarks.rates import batch_rows
from foundation.benchmarks.work import step_of
from foundation.training.module import MultiTaskModule

# Largest batch that training is measured on: it keeps what backward needs, several times what predicting keeps.
MAX_TRAINING_EDGES = {"cpu": 60_000, "cuda": 1_000_000}
REPEATS = (1, 2, 4, 8)  # of all crystals: a part of them may be larger or smaller than the rest


def exponent(sizes: Sequence[float], seconds: Sequence[float]) -> float:
    """The power p in seconds = c * size^p, by least squares on logarithms."""
    slope, _ = np.polyfit(np.log(np.asarray(sizes, float)), np.log(np.asarray(seconds, float)), 1)
    return float(slope)


def measure_growth(
    module: MultiTaskModule, graphs: GraphArrays, crystals: list[Crystal], device: str, max_edges: int
) -> dict[str, Any]:
    """Exponents and the points behind them.

    Args:
        module: The model.
        graphs: Graphs of the crystals.
        crystals: The crystals.
        device: "cpu" or "cuda".
        max_edges: Edges of the largest batch to predict.

    Returns:
        ``train`` and ``predict``, each with ``atoms``, ``edges``, ``seconds`` of batches of growing size and the
        exponents ``with_atoms`` and ``with_edges``; ``crystals``: the same for predicting, in batches of 32, and for
        building graphs, of ever more crystals.
    """
    ladders = {
        "train": batch_ladder(graphs, min(MAX_TRAINING_EDGES[device], max_edges)),
        "predict": batch_ladder(graphs, max_edges),
    }
    results = {name: _over_batches(module, graphs, rows, device, name) for name, rows in ladders.items()}
    return {**results, "crystals": _over_crystals(module, graphs, crystals, device)}


def batch_ladder(graphs: GraphArrays, max_edges: int) -> list[Rows]:
    """Batches of 8, 16, 32, ... crystals, the whole set as often as needed, the last with about ``max_edges`` edges."""
    per_crystal = float(graphs.edge_ptr[-1]) / len(graphs)
    largest = max(8, round(max_edges / per_crystal))
    sizes = [size for exponent in range(3, 31) if (size := 2**exponent) < 0.7 * largest]
    return [np.resize(np.arange(len(graphs)), size) for size in [*sizes, largest]]


def _over_batches(
    module: MultiTaskModule, graphs: GraphArrays, ladder: list[Rows], device: str, kind: str
) -> dict[str, Any]:
    points: dict[str, list[float]] = {"atoms": [], "edges": [], "seconds": []}
    for rows in ladder:
        batch = graphs.gather(rows).to(device)
        points["atoms"].append(len(batch.z))
        points["edges"].append(batch.edge_index.shape[1])
        work = step_of(module.train(), batch) if kind == "train" else partial(_predict, module, batch)
        work()  # the first of a size warms up
        clock = Clock(device)
        repeats = max(1, 40_000 // batch.edge_index.shape[1])
        for _ in range(repeats):
            work()
        points["seconds"].append(clock.seconds() / repeats)
    return {
        **points,
        "with_atoms": exponent(points["atoms"], points["seconds"]),
        "with_edges": exponent(points["edges"], points["seconds"]),
    }


def _over_crystals(
    module: MultiTaskModule, graphs: GraphArrays, crystals: list[Crystal], device: str
) -> dict[str, Any]:
    batches = batch_rows(len(crystals), BATCH_SIZE)
    chosen = crystals[: sum(map(len, batches))]
    predicting, building = [], []
    for times in (1, *REPEATS):  # the first round warms up
        clock = Clock(device)
        for rows in times * batches:
            _predict(module, graphs.gather(rows).to(device))
        predicting.append(clock.seconds())
        clock = Clock("cpu")
        build_graphs(times * chosen, module.encoder.recipe)
        building.append(clock.seconds())
    predicting, building = predicting[1:], building[1:]
    counts = [times * len(chosen) for times in REPEATS]
    return {
        "counts": counts,
        "predict_seconds": predicting,
        "graph_seconds": building,
        "predict": exponent(counts, predicting),
        "graphs": exponent(counts, building),
    }


def _predict(module: MultiTaskModule, batch: Any) -> None:
    module.eval()
    with torch.inference_mode():
        module(batch)
