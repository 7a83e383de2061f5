"""What heads cost: steps of joint training with all heads beside steps with the scalar heads alone, by turns."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.batching import CrystalBatch, build_graphs
from datamodules.crystals import Crystal
from datamodules.errors import InputError
from foundation.benchmarks.crystals import BATCH_SIZE, benchmark_crystals, encoder_config, optimization
from foundation.checkpoint import build_module
from foundation.process import keep_freed_memory
from foundation.training.module import MultiTaskModule
from foundation.training.spec import HeadSpec, ModelSpec

BATCHES = 8
RARE = 2  # crystals of a batch with a label of more than one number, where such labels are rare
ALONE = "scalar heads"


@dataclass
class Way:
    """One set of heads, and batches that carry labels for them.

    Attributes:
        name: How it is called in tables.
        module: Encoder and heads.
        batches: What it trains on.
    """

    name: str
    module: MultiTaskModule
    batches: list[CrystalBatch]

    def __post_init__(self) -> None:
        self.optimizer = self.module.make_optimizer()

    def step(self, index: int) -> float:
        """Processor seconds of one step: forward, backward, clipping, and the change of the weights."""
        batch, begun = self.batches[index], time.process_time()
        sums, counts, _ = self.module.losses(batch)
        (self.module.weighting(sums, counts) / counts.sum().clamp(min=1)).backward()
        torch.nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - begun


def time_heads(data: Path | None, heads: Mapping[str, HeadSpec], rounds: int) -> list[dict[str, Any]]:
    """Time steps of every way in turn on the same crystals.

    Args:
        data: JSON-lines file of crystals; None for those that ship.
        heads: Name of a property -> its head.
        rounds: How often every way makes a step on every batch.

    Returns:
        A row per way: ``seconds`` of a step, the median, and ``ratio`` to the scalar heads alone, with the
        ``lowest`` and ``highest`` of the rounds.

    Raises:
        InputError: If there is no scalar head to compare with.
    """
    keep_freed_memory()
    scalars = {name: spec for name, spec in heads.items() if spec.class_path.endswith("ScalarHead")}
    if not scalars:
        raise InputError("benchmark heads: the configuration names no ScalarHead to compare with")
    ways = _ways(benchmark_crystals(data), heads, scalars)
    random = np.random.default_rng(0)
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for way in ways:
        way.step(0)  # warms up
    for _ in range(rounds):
        spent = {way.name: 0.0 for way in ways}
        for index in range(BATCHES):
            for place in random.permutation(len(ways)):
                spent[ways[place].name] += ways[place].step(index) / BATCHES
        for name, value in spent.items():
            seconds[name].append(value)
    return [_row(way.name, seconds[way.name], seconds[ALONE]) for way in ways]


def _row(name: str, seconds: list[float], alone: list[float]) -> dict[str, Any]:
    ratios = [one / other for one, other in zip(seconds, alone, strict=True)]
    return {
        "heads": name,
        "seconds": median(seconds),
        "ratio": median(ratios),
        "lowest": min(ratios),
        "highest": max(ratios),
    }


def _ways(crystals: list[Crystal], heads: Mapping[str, HeadSpec], scalars: Mapping[str, HeadSpec]) -> list[Way]:
    every = _module(heads)
    graphs = build_graphs(crystals, every.encoder.recipe)
    random = np.random.default_rng(0)
    size = min(BATCH_SIZE, len(graphs))
    batches = [_labelled(every, graphs.gather(random.choice(len(graphs), size, replace=False))) for _ in range(BATCHES)]
    chosen = {ALONE: scalars}
    chosen |= {f"and {name}": {**scalars, name: spec} for name, spec in heads.items() if name not in scalars}
    ways = []
    for title, specs in chosen.items():
        columns = [every.names.index(name) for name in specs]
        ways.append(Way(title, _module(specs), [_with_labels(batch, batch.labels[:, columns]) for batch in batches]))
    ways.append(Way("all heads", every, batches))
    numbers = torch.tensor([not head.is_single for _, head in every.named_heads()])
    rare = numbers & (torch.arange(size) >= RARE)[:, None]  # [B, P] labels that are not there
    few = [_with_labels(batch, batch.labels.masked_fill(rare, torch.nan)) for batch in batches]
    ways.append(Way(f"all heads, tensors known of {RARE} in {size}", _module(heads), few))
    return ways


def _module(heads: Mapping[str, HeadSpec]) -> MultiTaskModule:
    torch.manual_seed(0)
    return build_module(ModelSpec(encoder_config(), dict(heads)), optimization()).train()


def _with_labels(batch: CrystalBatch, labels: Tensor) -> CrystalBatch:
    other: CrystalBatch = batch.clone()
    other.labels = labels
    return other


def _labelled(module: MultiTaskModule, batch: CrystalBatch) -> CrystalBatch:
    """The batch with labels that each head could have given: what it says of another crystal."""
    columns: list[Tensor] = []
    batch.shaped = {}
    with torch.no_grad():
        features = module.encoder.forward(batch)
        for name, head in module.named_heads():
            label = head.predict(head(features, batch), batch).roll(1, dims=0)
            if head.is_classifier:
                label = (label > 0.5).to(label.dtype) if head.is_single else label.argmax(dim=1).to(label.dtype)
            elif not head.is_single:
                batch.shaped[name] = label
            columns.append(label if label.dim() == 1 and name not in batch.shaped else torch.ones(len(batch.num_atoms)))
    batch.labels = torch.stack(columns, dim=1)
    return batch
