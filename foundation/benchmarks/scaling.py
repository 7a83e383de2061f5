"""Weak scaling: one process, and two of one thread each that train together, by turns on the same crystals.

``python -m foundation.benchmarks.scaling JOB`` is one of the two processes; the job says what ``run_scaling`` is told.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datamodules.batching import build_graphs
from datamodules.crystals import Crystal
from datamodules.dealing import Work
from datamodules.sampling import Rows
from foundation.benchmarks.crystals import benchmark_crystals, benchmark_spec, optimization
from foundation.checkpoint import build_module
from foundation.process import keep_freed_memory
from foundation.training.module import MultiTaskModule

WAYS = ("balanced", "counted", "apart")
CLOCKS = ("wall", "processor")
IDLE = 0.9  # share of a core that a process must get for its figures to say something
_SPIN_SECONDS = 0.2


def run_scaling(data: Path | None, rounds: int, steps: int, compile: bool, batch_size: int) -> dict[str, Any]:
    """Start the two processes and put their figures together.

    Args:
        data: JSON-lines file of crystals; None for those that ship.
        rounds: How often every way is timed.
        steps: Steps of the two processes in each.
        compile: Whether the encoder is compiled, as it is in long runs.
        batch_size: Crystals of each process in a step.

    Returns:
        ``efficiency`` of every way by ``wall`` and by ``processor`` time, where that of the slower process of each
        step counts: the rate of two processes over twice that of one, every round's and the median;
        ``all_reduce_seconds`` of the gradients; ``core``: the least share of a core that a process got in a round.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    job = {"data": data and str(data), "rounds": rounds, "steps": steps, "compile": compile, "batch_size": batch_size}
    command = [sys.executable, "-m", __name__, json.dumps(job)]
    launched = []
    for rank in "01":
        names = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {**os.environ, **names, "OMP_NUM_THREADS": "1"}
        launched.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        answers = [process.communicate()[0] for process in launched]
    finally:
        for process in launched:
            process.kill()  # where this process is stopped while they work
    if any(process.returncode for process in launched):
        raise RuntimeError("a process of the benchmark failed; its error stands above")
    found = json.loads(answers[0])
    found["efficiency"] = {way: {} for way in WAYS}
    for way in WAYS:
        for place, clock in enumerate(CLOCKS):
            each = [alone[place] / (2 * both[place]) for alone, both in zip(found["alone"], found[way], strict=True)]
            found["efficiency"][way][clock] = {"median": median(each), "rounds": each}
    return {**found, "load": os.getloadavg()[0]}


class Trainer:
    """A model and the crystals that it trains on, in one of the processes."""

    def __init__(self, crystals: list[Crystal], compile: bool, batch_size: int) -> None:
        torch.manual_seed(0)
        self.module = build_module(benchmark_spec(), optimization()).train()
        if compile:
            self.module.encoder.compile(dynamic=True)
        self.graphs = build_graphs(crystals, self.module.encoder.recipe)
        self.work = Work(self.graphs)
        self.together = DistributedDataParallel(_Step(self.module))
        self.optimizer = self.module.make_optimizer()
        self.batch_size = batch_size
        self.random = np.random.default_rng(0)  # the same in both processes

    def step(self, rows: Rows, model: nn.Module) -> float:
        """One step on these crystals, as training does it; processor seconds of this process."""
        busy = time.process_time()
        batch = self.graphs.gather(rows)
        loss: Tensor = model(batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return time.process_time() - busy

    def round(self, steps: int) -> dict[str, list[float]]:
        """Wall and processor seconds of every way on the same crystals, in an order that changes."""
        rank = dist.get_rank()
        batches = [self.random.integers(0, len(self.graphs), 2 * self.batch_size) for _ in range(steps)]
        own = _Step(self.module)

        def alone() -> list[float]:
            halves = [np.split(rows, 2) for rows in batches if rank == 0]
            return [sum(self.step(half, own) for half in both) for both in halves] or [0.0] * steps

        def balanced() -> list[float]:
            return [self.step(self.work.deal(rows, 2)[rank], self.together) for rows in batches]

        def counted() -> list[float]:
            return [self.step(rows[rank::2], self.together) for rows in batches]

        def apart() -> list[float]:  # nothing is averaged, nobody waits: what the machine itself allows
            return [self.step(self.work.deal(rows, 2)[rank], own) for rows in batches]

        ways: dict[str, Callable[[], list[float]]] = {way.__name__: way for way in (alone, balanced, counted, apart)}
        return {name: _seconds(ways[name]) for name in self.random.permutation(list(ways)).tolist()}


class _Step(nn.Module):
    """The loss of a batch, as a forward pass that DDP can wrap."""

    def __init__(self, module: MultiTaskModule) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: Any) -> Tensor:
        head = self.module.heads[self.module.names[0]]
        out: Tensor = head(self.module.encoder(batch), batch).abs().mean()
        return out


def _seconds(work: Callable[[], list[float]]) -> list[float]:
    """Wall seconds until both processes are done, and processor seconds of whichever was slower in each step."""
    dist.barrier()
    begin = time.perf_counter()
    busy = torch.tensor(work())
    dist.barrier()
    wall = time.perf_counter() - begin
    dist.all_reduce(busy, dist.ReduceOp.MAX)
    return [wall, float(busy.sum())]


def _all_reduce_seconds(trainer: Trainer) -> float:
    gradients = torch.zeros(sum(parameter.numel() for parameter in trainer.module.parameters()))

    def reduce() -> list[float]:
        dist.all_reduce(gradients)
        return [0.0]

    return median(_seconds(reduce)[0] for _ in range(5))


def _share_of_a_core() -> float:
    """The least that a process gets of its core while both spin: 1 where nothing else runs."""
    dist.barrier()
    wall, busy = time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < _SPIN_SECONDS:
        pass
    share = torch.tensor((time.process_time() - busy) / (time.perf_counter() - wall))
    dist.all_reduce(share, dist.ReduceOp.MIN)
    return float(share)


def main(job: dict[str, Any]) -> None:
    """Be one of the two processes; the first prints what both found."""
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo")
    found = _measure(**job)
    # The wrapped model has to go before the group does: a reducer that outlives its group can wait for it for ever.
    gc.collect()
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


def _measure(data: str | None, rounds: int, steps: int, compile: bool, batch_size: int) -> dict[str, Any]:
    trainer = Trainer(benchmark_crystals(Path(data) if data else None), compile, batch_size)
    for _ in range(2 + compile):  # warms up
        trainer.round(1)
    core: list[float] = []
    found: dict[str, list[list[float]]] = {name: [] for name in ("alone", *WAYS)}
    for _ in range(rounds):
        core.append(_share_of_a_core())
        for name, seconds in trainer.round(steps).items():
            found[name].append(seconds)
    return {
        **found,
        "core": core,
        "all_reduce_seconds": _all_reduce_seconds(trainer),
        "steps": steps,
        "compile": compile,
        "batch_size": batch_size,
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(json.loads(sys.argv[1]))
