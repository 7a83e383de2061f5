"""Error at equal processor time: every model trains from scratch on the same crystals, for the same seconds.

One recipe for all: the learning rate rising linearly over the first 5 % of the budget and falling to zero by a cosine,
L1 loss on standardised targets, gradients clipped at norm 1, a moving average of the weights judged at the end. The
peers take AdamW, as their own programs do: NequIP's weights are many matrices in one vector, which Muon cannot turn.
Ours takes what our commands take: on thousands of crystals the optimizer of pretraining, Muon for the matrices of its
encoder, on hundreds AdamW, as adapting does. The learning rate of each model and task is the best of those tried, at
the shortest budget, on training crystals that were held out; the judged crystals play no part in it. ``ours_seeds``
spends its seconds as ``foundation adapt --seeds N`` does, on models of half the shortest budget each, and
``ours_folds`` as ``--folds 5`` does: on five models, each without a fifth of the crystals, mixed with a forest and
support vectors on descriptors; of a longer budget other folds get a part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foundation.benchmarks.contestants import OURS, OURS_FOLDS, OURS_SEEDS, PEERS, code_hash, run_job
from foundation.benchmarks.crystals import optimization
from foundation.benchmarks.tasks import CHOOSE, FIT, JUDGE, Task
from foundation.files import write_json
from foundation.training.compilation import COLD_SECONDS, SAVED_SHARE
from foundation.training.optimization import Optimization

RECIPE = {"weight_decay": 1e-2, "warmup": 0.05, "clip": 1.0, "ema_decay": 0.99}
# Small sets take small batches, so that a short budget holds enough steps, and the optimizer that adapting takes.
SMALL_SET, SMALL_BATCH, BATCH = 1000, 16, 32
# Three for each, around where its error is least: NequIP's weights take larger steps.
LEARNING_RATES = {
    OURS: [1e-3, 3e-3, 1e-2],
    OURS_SEEDS: [1e-3, 3e-3, 1e-2],
    OURS_FOLDS: [1e-3, 3e-3, 1e-2],
    "nequip": [3e-3, 1e-2, 3e-2],
    "alignn": [1e-3, 3e-3, 1e-2],
}
# Budgets in seconds from which a first compilation pays on one thread. NequIP's costs 65 s and saves a third of the
# time of a step. ALIGNN trains as its own program does, without.
COMPILE_FROM = {OURS: COLD_SECONDS / SAVED_SHARE, "nequip": 220.0}


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Attributes:
        folder: Where results are kept; a cell that stands there is not run again.
        peers: Interpreter of every peer that takes part.
        budgets: Seconds, ascending.
        learning_rates: Model -> rates to try; who is not named does not take part.
        seeds: Runs per budget.
        jobs: Processes at a time.
        threads: Threads of each process.
        device: "cpu" or "cuda".
        compile_from: Model -> shortest budget, in seconds, at which it is compiled; others never are.
        encoder: Arguments of our encoder.
    """

    folder: Path
    peers: Mapping[str, str]
    budgets: list[float]
    learning_rates: Mapping[str, list[float]]
    seeds: int
    jobs: int
    threads: int
    device: str
    compile_from: Mapping[str, float]
    encoder: dict[str, Any]

    @property
    def models(self) -> list[str]:
        """Who takes part."""
        return [model for model in self.learning_rates if model not in PEERS or model in self.peers]


@dataclass(frozen=True)
class Cell:
    """One training run."""

    task: str
    model: str
    phase: str
    budget: float
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.task}-{self.model}-{self.phase}-{self.budget:g}s-{self.learning_rate:g}-seed{self.seed}"


def compare(plan: Plan, tasks: list[Task]) -> list[dict[str, Any]]:
    """Run every cell that does not stand in the plan's folder.

    Returns:
        One row per final run: the cell, what its process reported, and ``failed`` where there is no error to show.
    """
    data = {}
    for task in tasks:
        path = (plan.folder / "data" / f"{task.name}.npz").absolute()
        data[task.name] = {"data": str(path), "data_hash": task.write(path), "fitted": int((task.part != JUDGE).sum())}
    trials = [
        Cell(task.name, model, "choose", plan.budgets[0], rate, 0)
        for task in tasks
        for model in plan.models
        for rate in plan.learning_rates[model]
    ]
    tried = run_cells(plan, trials, data)
    for line in rates_at_the_edge(plan, tasks, tried):
        print(line, flush=True)
    finals = [
        Cell(task.name, model, "final", budget, rate, seed)
        for budget in plan.budgets
        for seed in range(plan.seeds)
        for task in tasks
        for model in plan.models
        if (rate := best_rate(tried, task.name, model)) is not None
    ]
    return run_cells(plan, finals, data)


def run_cells(plan: Plan, cells: list[Cell], data: Mapping[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Results of these cells, in order; those that stand in the folder with the same job are only read."""
    with ThreadPoolExecutor(plan.jobs) as pool:
        return list(pool.map(lambda cell: _run_cell(plan, cell, data[cell.task]), cells))


def best_rate(tried: list[dict[str, Any]], task: str, model: str) -> float | None:
    """The rate with the lowest error on the held-out training crystals; None if no trial came through."""
    errors = {
        row["learning_rate"]: row["mae"]
        for row in tried
        if row["task"] == task and row["model"] == model and row["mae"] is not None
    }
    return min(errors, key=lambda rate: errors[rate]) if errors else None


def rates_at_the_edge(plan: Plan, tasks: list[Task], tried: list[dict[str, Any]]) -> list[str]:
    """One line for every model whose best rate is the least or the greatest tried: a better one may lie beyond."""
    return [
        f"{task.name}, {model}: the best rate, {rate:g}, lies at the edge of those tried; see --learning-rates"
        for task in tasks
        for model in plan.models
        if (rate := best_rate(tried, task.name, model))
        in (min(plan.learning_rates[model]), max(plan.learning_rates[model]))
    ]


def job_of(plan: Plan, cell: Cell, data: Mapping[str, Any]) -> dict[str, Any]:
    """What the cell's process is told: all that its result depends on."""
    choosing, small = cell.phase == "choose", data["fitted"] <= SMALL_SET
    job = {
        "do": "train",
        "code": code_hash(cell.model),
        **{key: data[key] for key in ("data", "data_hash")},
        "fit": [FIT] if choosing else [FIT, CHOOSE],
        "judge": [CHOOSE] if choosing else [JUDGE],
        "budget": cell.budget,
        "learning_rate": cell.learning_rate,
        "seed": cell.seed,
        "batch_size": SMALL_BATCH if small else BATCH,
        "compile": cell.budget >= plan.compile_from.get(cell.model, math.inf),
        "threads": plan.threads,
        "device": plan.device,
        **RECIPE,
    }
    # A model of several has the same time at every budget.
    times = max(1, round(cell.budget / plan.budgets[0]))
    if cell.model == OURS_FOLDS:
        job |= {"cuts": times}
    if cell.model == OURS_SEEDS:
        job |= {"members": 2 * times}
    optimizer = (Optimization() if small else optimization()).optimizer
    own = {"encoder": plan.encoder, "optimizer": optimizer, "cutoff": None}
    return {**job, **own} if cell.model not in PEERS else job


def _run_cell(plan: Plan, cell: Cell, data: Mapping[str, Any]) -> dict[str, Any]:
    file = plan.folder / "cells" / f"{cell.name}.json"
    job = job_of(plan, cell, data)
    key = {name: value for name, value in job.items() if name != "data"}  # the folder may have moved
    if file.is_file() and (kept := json.loads(file.read_text()))["job"] == json.loads(json.dumps(key)):
        return {**asdict(cell), "compile": job["compile"], **kept["result"]}
    log = plan.folder / "logs" / f"{cell.name}.log"
    result = run_job(cell.model, plan.peers, job, log)
    if result is None:
        print(f"{cell.name}: failed, see {log}", flush=True)
        return {**asdict(cell), "compile": job["compile"], "mae": None, "failed": str(log)}
    write_json(file, {"job": key, "result": result})
    error = result["mae"] if result["mae"] is not None else math.nan
    print(f"{cell.name}: error {error:.4g} after {result['seconds']:.1f} s, {result['steps']} steps", flush=True)
    return {**asdict(cell), "compile": job["compile"], **result}
