"""The full benchmark: where a step's time goes, how cost grows, and the peers side by side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from datamodules.batching import GraphArrays, build_graphs
from datamodules.crystals import Crystal
from foundation.benchmarks.crystals import BATCH_SIZE, benchmark_crystals, benchmark_spec, optimization
from foundation.benchmarks.full_report import report
from foundation.benchmarks.growth import measure_growth
from foundation.benchmarks.kernels import measure_kernels
from foundation.benchmarks.machine import describe
from foundation.benchmarks.peers.contest import Clock, peak_memory
from foundation.benchmarks.rates import STEPS, batch_rows, predicting_seconds, training_parts, wall_and_busy
from foundation.benchmarks.side_by_side import compare_rates, ratios
from foundation.benchmarks.tasks import FIT, Task
from foundation.benchmarks.work import dominant_operators, matrix_product_rate, matrix_products, step_of
from foundation.checkpoint import build_module
from foundation.training.module import MultiTaskModule

_KINDS = ("eager", "compiled")


def run_full(
    folder: Path,
    data: Path | None,
    device: str,
    peers: Mapping[str, str],
    rounds: int,
    max_edges: int,
    batch_size: int = BATCH_SIZE,
) -> dict[str, Any]:
    """Measure everything and write results.json and benchmark.png into the folder.

    Args:
        folder: Where to write.
        data: JSON-lines file of crystals, of which every eighth is taken; None for those that ship.
        device: "cpu" or "cuda".
        peers: Interpreter of every peer that takes part.
        rounds: Rounds of the comparison.
        max_edges: Edges of the largest batch to predict.
        batch_size: Crystals of a batch, of ours and of peers.

    Returns:
        What results.json holds.
    """
    crystals = benchmark_crystals(data)
    spec = benchmark_spec()
    results: dict[str, Any] = {
        "encoder": {"config": spec.encoder, "config_hash": spec.encoder_hash},
        "batch_size": batch_size,
        "machine": {**describe(device), "crystals": str(data) if data else "shipped prototypes"},
    }
    threads = torch.get_num_threads()
    results["peers"] = compare_rates(folder, _task(crystals), spec.encoder, peers, device, threads, rounds, batch_size)
    results["ratios"] = ratios(results["peers"])
    torch.manual_seed(0)
    module = build_module(spec, optimization()).to(device)
    graphs = build_graphs(crystals, module.encoder.recipe)
    batch = graphs.gather(batch_rows(len(graphs), batch_size)[0]).to(device)
    for name in _KINDS:
        print(f"measuring a step, {name}", flush=True)
        if name == "compiled":
            module.encoder.compile(dynamic=True)
        results[name] = measure_step(module, graphs, device, batch_size)
        if name == "eager":
            flops = matrix_products(step_of(module.train(), batch))
        rate = matrix_product_rate(device)
        results[name]["matrix_product_flops"] = flops
        results[name]["matrix_product_rate"] = rate
        results[name]["share_of_matrix_product_rate"] = flops / results[name]["step_seconds"] / rate
    # After the steps, whose peak memory its batches would hide, and on a module that is not compiled.
    print("measuring growth", flush=True)
    module = build_module(spec, optimization()).to(device)
    results["growth"] = measure_growth(module, graphs, crystals, device, max_edges)
    if device == "cuda":
        print("counting in the kernels of a step", flush=True)
        results["kernels"] = {name: measure_kernels(data, batch_size, name == "compiled") for name in _KINDS}
    report(folder, results)
    return results


def measure_step(module: MultiTaskModule, graphs: GraphArrays, device: str, batch_size: int) -> dict[str, Any]:
    """Time split of a training step, rates, first step, memory and arithmetic of the module as it is.

    A compiled encoder is compiled for training; predicting runs it as it is. On the CPU the peak memory is that of the
    process so far, so of two kinds that are measured the second has at least that of the first.
    """
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    batches = batch_rows(len(graphs), batch_size)[:STEPS]
    step = step_of(module.train(), graphs.gather(batches[0]).to(device))
    clock = Clock(device)
    step()
    first = clock.seconds()
    parts: dict[str, list[float]] = {}
    wall, busy = wall_and_busy(lambda: parts.update(training_parts(module, graphs, batches, device)))
    seconds = {name: median(values) for name, values in parts.items()}
    total = sum(seconds.values())
    result: dict[str, Any] = {
        "first_step_seconds": first,
        "step_seconds": total,
        "train": len(batches[0]) / total,
        "predict": len(batches[0]) / median(predicting_seconds(module, graphs, batches, device)),
        "split": {name: value / total for name, value in seconds.items()},
        "peak_memory_mib": peak_memory(device),
    }
    if device == "cpu":  # what the processor did for others meanwhile, or nothing
        result["off_processor_share_of_wall_time"] = max(0.0, 1 - busy / wall / torch.get_num_threads())
    module.train()
    result["dominant"] = dominant_operators(step, device)
    return result


def _task(crystals: list[Crystal]) -> Task:
    return Task(
        name="rates",
        unit="",
        crystals=crystals,
        target=np.zeros(len(crystals)),
        part=np.full(len(crystals), FIT),
        how="crystals to time; their target does not matter",
    )
