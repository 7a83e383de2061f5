"""Rates of the encoder that the configurations use: training, predicting, building graphs, and where time goes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml

from datamodules.batching import CrystalBatch, GraphArrays, build_graphs
from datamodules.crystals import Crystal, as_crystal
from datamodules.graph import neighbor_list
from datamodules.properties import KNOWN
from datamodules.readers import read_source
from foundation.checkpoint import build_module
from foundation.paths import config_path
from foundation.quickstart.prototypes import starts
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.spec import HeadSpec, ModelSpec

BATCH_SIZE = 32
NUM_CRYSTALS = 800
STEPS = 12


def run_benchmark(data: Path | None) -> dict[str, Any]:
    """Measure everything.

    A CPU-second is process time, so other work on the machine shows little; on several threads it counts all.

    Args:
        data: JSON-lines file of Materials Project crystals, of which every eighth is taken; None for the
            prototypes that ship, unrelaxed.

    Returns:
        Nested results: ``train``, ``predict``, ``graph``, ``data``, ``split``, ``encoder``, ``machine``.
    """
    crystals = _crystals(data)
    encoder = yaml.safe_load(config_path("configs/pretrain.yaml").read_text())["encoder"]
    target = KNOWN["formation_energy_per_atom"]
    spec = ModelSpec(encoder, {target.name: HeadSpec("heads.ScalarHead", {}, target)})
    torch.manual_seed(0)
    module = build_module(spec, Optimization())
    recipe = module.encoder.recipe
    graph = _timed(lambda: [neighbor_list(crystal, recipe) for crystal in crystals], repeats=3)
    graphs = build_graphs(crystals, recipe)
    rows = [list(range(start, start + BATCH_SIZE)) for start in range(0, len(crystals) - BATCH_SIZE + 1, BATCH_SIZE)]
    parts = _training_parts(module, graphs, rows[:STEPS])
    step = {name: median(seconds) for name, seconds in parts.items()}
    batches = [graphs.gather(row) for row in rows[:STEPS]]
    module.eval()
    with torch.inference_mode():
        predict = [_timed(_predicting(module, batch)) for batch in batches]
    return {
        "train": {"crystals_per_cpu_second": BATCH_SIZE / sum(step.values()), "batch_size": BATCH_SIZE},
        "predict": {"crystals_per_cpu_second": BATCH_SIZE / median(predict)},
        "graph": {
            "crystals_per_cpu_second": len(crystals) / graph,
            "edges_per_atom": float(graphs.edge_ptr[-1] / graphs.atom_ptr[-1]),
            "atoms_per_crystal": float(graphs.atom_ptr[-1] / len(graphs)),
        },
        "data": {
            "share_of_step": step["data"] / sum(step.values()),
            "cached_crystals_per_cpu_second": BATCH_SIZE / step["data"],
        },
        "split": {name: seconds / sum(step.values()) for name, seconds in step.items()},
        "encoder": {
            "config": encoder,
            "config_hash": hashlib.sha256(json.dumps(encoder, sort_keys=True).encode()).hexdigest()[:16],
            "parameters": sum(p.numel() for p in module.encoder.parameters()),
        },
        "machine": {
            "threads": torch.get_num_threads(),
            "cpus": os.cpu_count(),
            "processor": platform.processor() or platform.machine(),
            "torch": torch.__version__,
            "crystals": str(data) if data else "shipped prototypes",
        },
    }


def _training_parts(module: MultiTaskModule, graphs: GraphArrays, rows: list[list[int]]) -> dict[str, list[float]]:
    """Seconds of each part of every training step but the first, which warms up."""
    module.train()
    head = module.heads[module.names[0]]
    optimizer = torch.optim.AdamW(module.parameters(), foreach=True)
    parts: dict[str, list[float]] = {"data": [], "forward": [], "backward": [], "optimizer": []}
    for number, row in enumerate([rows[0], *rows]):
        marks = [time.process_time()]
        batch = graphs.gather(row)
        marks.append(time.process_time())
        loss = head(module.encoder(batch), batch).square().mean()
        marks.append(time.process_time())
        loss.backward()
        marks.append(time.process_time())
        optimizer.step()
        optimizer.zero_grad()
        marks.append(time.process_time())
        if number > 0:
            for part, start, stop in zip(parts, marks, marks[1:], strict=False):
                parts[part].append(stop - start)
    return parts


def _predicting(module: MultiTaskModule, batch: CrystalBatch) -> Callable[[], object]:
    return lambda: module(batch)


def _timed(work: Callable[[], object], repeats: int = 2) -> float:
    """Least CPU-seconds of a few repeats."""
    seconds = []
    for _ in range(repeats):
        start = time.process_time()
        work()
        seconds.append(time.process_time() - start)
    return min(seconds)


def _crystals(data: Path | None) -> list[Crystal]:
    if data is None:
        return [as_crystal(start.atoms()) for start in starts()][:NUM_CRYSTALS]
    records = islice(read_source(data), 0, NUM_CRYSTALS * 8, 8)
    return [record.crystal for record in records if record.crystal is not None]
