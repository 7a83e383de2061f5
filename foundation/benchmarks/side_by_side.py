"""Rates of ours and the peers', each in its own process, round after round in turn.

What else the machine does falls on all of them alike, so ratios of medians are steady.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from foundation.benchmarks.contestants import OURS, start
from foundation.benchmarks.crystals import optimization
from foundation.benchmarks.tasks import Task

BATCHES = 4  # of a round
SAME_CUTOFF = 5.0  # Angstrom, NequIP's


@dataclass(frozen=True)
class Entry:
    """One line of the comparison.

    Attributes:
        model: Who.
        graph: "own", or "5 A" for all neighbours within the cutoff that NequIP uses.
        compile: Whether the forward pass is compiled.
    """

    model: str
    graph: str
    compile: bool

    @property
    def name(self) -> str:
        """How it is called in tables."""
        return f"{self.model} ({self.graph}{', compiled' if self.compile else ''})"


# ALIGNN's line graph of all neighbours within 5 Angstrom would be hundreds of times larger than its own.
ENTRIES = (
    Entry(OURS, "own", False),
    Entry("nequip", "own", False),
    Entry(OURS, "own", True),
    Entry("nequip", "own", True),
    Entry("alignn", "own", False),
    Entry(OURS, "5 A", False),
    Entry(OURS, "5 A", True),
)


def compare_rates(
    folder: Path,
    task: Task,
    encoder: dict[str, Any],
    peers: Mapping[str, str],
    device: str,
    threads: int,
    rounds: int,
    batch_size: int,
) -> list[dict[str, Any]]:
    """Measure every entry whose model is there.

    Args:
        folder: Where the crystals and the logs are put.
        task: The crystals.
        encoder: Arguments of our encoder.
        peers: Interpreter of every peer that takes part.
        device: "cpu" or "cuda".
        threads: Threads of each process.
        rounds: Rounds.
        batch_size: Crystals of a batch.

    Returns:
        A row per entry: ``train`` and ``predict`` in crystals per second (of the processor, or of wall time on a
        GPU), each with ``median``, ``lowest`` and ``highest`` of the rounds, and what the process said of itself.
        An entry whose process failed has ``failed``.
    """
    data = (folder / "data" / "rates.npz").absolute()
    task.write(data)
    entries = [entry for entry in ENTRIES if entry.model == OURS or entry.model in peers]
    job = {"do": "time", "data": str(data), "seed": 0, "device": device, "threads": threads}
    size = min(batch_size, len(task.crystals))
    job |= {"batch_size": size, "batches": min(BATCHES, len(task.crystals) // size)}
    rows: dict[str, list[dict[str, Any]]] = {entry.name: [] for entry in entries}
    with ExitStack() as stack:
        workers: dict[str, _Worker] = {}
        for entry in entries:
            print(f"starting {entry.name}", flush=True)
            cutoff = SAME_CUTOFF if entry.graph == "5 A" else None
            own = {"encoder": encoder, "optimizer": optimization().optimizer, "cutoff": cutoff}
            worker = _Worker(entry, peers, {**job, "compile": entry.compile, **own}, folder / "logs", stack)
            workers[entry.name] = worker
        for _ in range(rounds):
            for name, worker in workers.items():
                if worker.about is not None and (answer := worker.ask()) is not None:
                    rows[name].append(answer)
    return [_row(entry, workers[entry.name], rows[entry.name], rounds) for entry in entries]


class _Worker:
    """A contestant's process, warmed up, that measures a round when asked.

    Attributes:
        about: What the process said of itself; None if it failed.
    """

    def __init__(
        self, entry: Entry, peers: Mapping[str, str], job: Mapping[str, Any], logs: Path, stack: ExitStack
    ) -> None:
        logs.mkdir(parents=True, exist_ok=True)
        self.log = (
            logs / f"rates-{entry.model}-{entry.graph.replace(' ', '')}{'-compiled' if entry.compile else ''}.log"
        )
        cache = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="foundation-inductor-")))
        self.process = start(entry.model, peers, job, cache, stack.enter_context(self.log.open("w")))
        stack.callback(_end, self.process)
        self.about = self._say(json.dumps(job))

    def ask(self) -> dict[str, Any] | None:
        """Figures of one round; None if the process failed."""
        return self._say("round")

    def _say(self, line: str) -> dict[str, Any] | None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            print(line, file=self.process.stdin, flush=True)
        except BrokenPipeError:
            return None
        for printed in self.process.stdout:  # libraries print other things too
            if printed.startswith("{"):
                answer: dict[str, Any] = json.loads(printed)
                return answer
        return None


def _end(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.close()
    process.wait()


def _row(entry: Entry, worker: _Worker, answers: list[dict[str, Any]], rounds: int) -> dict[str, Any]:
    row: dict[str, Any] = {"name": entry.name, "model": entry.model, "graph": entry.graph, "compile": entry.compile}
    if worker.about is None or len(answers) < rounds:
        return {**row, "failed": str(worker.log)}
    for figure in ("train", "predict"):
        values = [answer[figure] for answer in answers]
        row[figure] = {"median": median(values), "lowest": min(values), "highest": max(values), "rounds": values}
    return {**row, **worker.about, "peak_memory_mib": answers[-1]["peak_memory_mib"]}


def ratios(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Training rates of ours relative to NequIP's, by graph and by whether both are compiled."""
    rates = {row["name"]: row["train"]["median"] for row in rows if "failed" not in row}
    found = {}
    for graph in ("own", "5 A"):
        for compiled in (False, True):
            ours, peer = Entry(OURS, graph, compiled).name, Entry("nequip", "own", compiled).name
            if ours in rates and peer in rates:
                found[f"{ours} / {peer}"] = float(np.round(rates[ours] / rates[peer], 4))
    return found
