"""How long and how large a pretraining would be on many GPUs: a short probe of one process, then arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from datamodules.dealing import Work
from datamodules.sampling import Rows
from foundation.benchmarks.peers.contest import Clock
from foundation.training.module import MultiTaskModule

GIB = 2**30
# Weights, gradients, two moments of AdamW and the moving average; DDP keeps gradients in buckets as well.
COPIES = {"ddp": 6, "fsdp2": 5}
USABLE = 0.9  # of a GPU's memory: the rest is fragments, and the program itself
REPEATS = 3
DEALT = 50  # global batches dealt out to see how long processes wait for each other


@dataclass(frozen=True)
class Machine:
    """What is assumed of the machine planned for.

    Attributes:
        gpus: How many.
        memory: Bytes of one.
        bandwidth: Bytes per second at which every one of them sends while gradients are added up.
        strategy: "ddp", or "fsdp2" for sharded weights.
        rate: Crystals per second of one in training; None takes that of the probe.
    """

    gpus: int
    memory: float
    bandwidth: float
    strategy: str = "ddp"
    rate: float | None = None


@dataclass(frozen=True)
class Probe:
    """What one process measured.

    Attributes:
        parameters: Number of weights that train.
        seconds: Of a training step, and
        seconds_per_edge: what an edge adds to it.
        bytes_per_edge: What a step keeps for the backward pass.
        edges: Of a crystal, in the mean.
    """

    parameters: int
    seconds: float
    seconds_per_edge: float
    bytes_per_edge: float
    edges: float

    def step_seconds(self, crystals: float) -> float:
        """Of a step of so many crystals."""
        return self.seconds + self.seconds_per_edge * self.edges * crystals


def probe(module: MultiTaskModule, data: CrystalDataModule, device: torch.device, sizes: tuple[int, ...]) -> Probe:
    """Time training steps of batches of a few sizes, and count what they keep.

    Args:
        module: The model.
        data: Its data, properties chosen.
        device: What to probe.
        sizes: Crystals in the batches.
    """
    module = module.to(device).train()
    random = np.random.default_rng(0)
    edges, seconds, kept = [], [], []
    for size in sizes:
        rows = random.choice(data.split.train, size)
        batch: Any = data.graphs.gather(rows, data.labels[torch.from_numpy(rows)]).to(device)
        kept.append(_kept_bytes(module, batch))  # the first step of a size warms up
        edges.append(batch.edge_index.shape[1])
        seconds.append(median(_step_seconds(module, batch, device) for _ in range(REPEATS)))
    # Weighted by 1 / seconds: the relative error counts.
    per_edge, constant = np.polyfit(edges, seconds, 1, w=1 / np.asarray(seconds))
    if constant < 0:
        per_edge, constant = sum(seconds) / sum(edges), 0.0
    sample = random.choice(data.split.train, min(10_000, len(data.split.train)), replace=False)
    return Probe(
        parameters=sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
        seconds=float(constant),
        seconds_per_edge=float(per_edge),
        bytes_per_edge=max(bytes_ / count for bytes_, count in zip(kept, edges, strict=True)),
        edges=float(np.mean(data.graphs.edge_ptr[sample + 1] - data.graphs.edge_ptr[sample])),
    )


def plan(found: Probe, machine: Machine, data: CrystalDataModule, crystals: int) -> dict[str, float]:
    """What a run would take.

    Args:
        found: What the probe measured.
        machine: What is planned for.
        data: The data; the batch size is its own.
        crystals: Crystals that train.

    Returns:
        ``memory`` of a GPU in GiB, of it ``weights``; ``largest_batch`` crystals on it; ``crystals_per_second`` of all;
        ``epochs_per_day``; shares of a step: ``communication`` and ``waiting``; ``steps`` of an epoch.
    """
    holders = machine.gpus if machine.strategy == "fsdp2" else 1
    weights = 4 * found.parameters * COPIES[machine.strategy] / holders
    per_crystal = found.bytes_per_edge * found.edges
    held = min(data.batch_size * found.edges, float(data.max_edges)) / found.edges  # crystals in a batch
    compute = found.step_seconds(held)
    if machine.rate is not None:
        compute = held / machine.rate
    waiting = imbalance(data, machine.gpus) - 1
    communication = communication_seconds(4 * found.parameters, machine)
    step = compute * (1 + waiting) + communication
    rate = held * machine.gpus / step
    return {
        "memory": (weights + held * per_crystal) / GIB,
        "weights": weights / GIB,
        "largest_batch": max(0.0, (USABLE * machine.memory - weights) / per_crystal),
        "crystals_per_second": rate,
        "epochs_per_day": 86_400 * rate / crystals,
        "communication": communication / step,
        "waiting": compute * waiting / step,
        "steps": crystals / (held * machine.gpus),
    }


def communication_seconds(size: int, machine: Machine) -> float:
    """Seconds to average gradients of so many bytes over all GPUs, none of it hidden behind the backward pass.

    Each GPU sends its share of them twice around a ring; with sharded weights these are gathered twice more, forward
    and backward, and half of the averaging falls away.
    """
    rounds = {"ddp": 2.0, "fsdp2": 3.0}[machine.strategy]
    return rounds * (machine.gpus - 1) / machine.gpus * size / machine.bandwidth


def imbalance(data: CrystalDataModule, gpus: int) -> float:
    """The dearest share of a global batch over the mean of all, in the mean over batches as they are dealt out."""
    random = np.random.default_rng(0)
    work = Work(data.graphs, data.max_edges)
    ratios = []
    for _ in range(DEALT if gpus > 1 else 0):
        batch: Rows = random.choice(data.split.train, data.batch_size * gpus)
        loads = [float(work.of(share).sum()) for share in work.deal(batch, gpus)]
        ratios.append(max(loads) / float(np.mean(loads)))
    return float(np.mean(ratios)) if ratios else 1.0


def _step_seconds(module: MultiTaskModule, batch: Any, device: torch.device) -> float:
    clock = Clock(device.type)
    _step(module, batch)
    return clock.seconds()


def _step(module: MultiTaskModule, batch: Any) -> None:
    sums, counts, _ = module.losses(batch)
    (module.weighting(sums, counts) / counts.sum().clamp(min=1)).backward()
    module.zero_grad()


def _kept_bytes(module: MultiTaskModule, batch: Any) -> int:
    """Bytes that a step keeps from the forward for the backward pass, weights not counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    kept: dict[int, Tensor] = {}  # held until the end, so that no address is taken twice

    def keep(tensor: Tensor) -> Tensor:
        place = tensor.untyped_storage().data_ptr()
        if place not in own:
            kept[place] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        sums, counts, _ = module.losses(batch)
    total = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    kept.clear()
    module.weighting(sums, counts).backward()
    module.zero_grad()
    return total
