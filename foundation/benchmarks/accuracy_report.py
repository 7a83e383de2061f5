"""The accuracy benchmark as a table, a CSV, a JSON file and a plot."""

from __future__ import annotations

from pathlib import Path
from statistics import mean
from typing import Any

import pandas as pd

from foundation.benchmarks.accuracy import RECIPE, Plan
from foundation.benchmarks.machine import describe
from foundation.benchmarks.tasks import Task
from foundation.commands.report import number, print_table
from foundation.files import write_json, write_text
from foundation.plots import save
from foundation.training.spec import ModelSpec

COLUMNS = (
    "task",
    "model",
    "budget",
    "seed",
    "mae",
    "seconds",
    "steps",
    "epochs",
    "learning_rate",
    "compile",
    "graph_seconds",
    "setup_seconds",
    "parameters",
    "peak_memory_mib",
    "train_loss",
    "failed",
)


def report(plan: Plan, tasks: list[Task], rows: list[dict[str, Any]]) -> None:
    """Write results.csv, results.json and error.png into the plan's folder, and print the table.

    Args:
        plan: What was compared.
        tasks: The tasks, for their units and baselines.
        rows: One row per final run.
    """
    folder = plan.folder
    settings = {
        "recipe": RECIPE,
        "learning_rates_tried": dict(plan.learning_rates),
        "encoder": {"config": plan.encoder, "config_hash": ModelSpec(plan.encoder, {}).encoder_hash},
        "machine": {**describe(plan.device), "threads": plan.threads, "jobs": plan.jobs},
    }
    baselines = {task.name: task.baselines() for task in tasks}
    table = pd.DataFrame([{column: row.get(column) for column in COLUMNS} for row in rows], columns=list(COLUMNS))
    write_text(folder / "results.csv", table.to_csv(index=False))
    described = {task.name: {"unit": task.unit, "how": task.how, "baselines": baselines[task.name]} for task in tasks}
    write_json(folder / "results.json", {**settings, "tasks": described, "runs": rows})
    plot(folder / "error.png", tasks, rows)
    for task in tasks:
        _print(task, [row for row in rows if row["task"] == task.name], baselines[task.name])


def errors_of(rows: list[dict[str, Any]], model: str) -> dict[float, float]:
    """Budget -> error of a model, averaged over seeds; budgets at which no run came through are left out."""
    errors: dict[float, list[float]] = {}
    for row in rows:
        if row["model"] == model and row["mae"] is not None:
            errors.setdefault(row["budget"], []).append(row["mae"])
    return {budget: mean(values) for budget, values in sorted(errors.items())}


def plot(out: Path, tasks: list[Task], rows: list[dict[str, Any]]) -> None:
    """Error against seconds, one panel per task, with the median predictor as a line."""
    from matplotlib import pyplot as plt
    from matplotlib.ticker import FormatStrFormatter, NullLocator

    figure, axes = plt.subplots(1, len(tasks), figsize=(4.6 * len(tasks), 3.8), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        own = [row for row in rows if row["task"] == task.name]
        for model in dict.fromkeys(row["model"] for row in own):
            errors = errors_of(own, model)
            axis.plot(list(errors), list(errors.values()), marker="o", label=model)
        axis.axhline(task.baselines()["median predictor"], color="gray", linestyle="--", label="median predictor")
        axis.set(title=task.name, xlabel="seconds of training", ylabel=f"error ({task.unit})")
        axis.set(xscale="log", yscale="log")
        budgets = sorted({row["budget"] for row in own})
        axis.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axis.xaxis.set_minor_locator(NullLocator())
        for which in (axis.yaxis.set_major_formatter, axis.yaxis.set_minor_formatter):
            which(FormatStrFormatter("%.3g"))
        axis.legend()
    save(figure, out)


def _print(task: Task, rows: list[dict[str, Any]], baselines: dict[str, float]) -> None:
    budgets = sorted({row["budget"] for row in rows})
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        errors = errors_of(rows, model)
        rate = next(row["learning_rate"] for row in rows if row["model"] == model)
        lines.append([model, number(rate), *(number(errors.get(budget)) for budget in budgets)])
    lines += [[name, "-", *[number(error)] * len(budgets)] for name, error in baselines.items()]
    print_table(
        f"{task.name} ({task.unit}): {task.how}",
        ["model", "learning rate", *(f"{budget:g} s" for budget in budgets)],
        lines,
    )
