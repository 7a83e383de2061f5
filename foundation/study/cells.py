"""One cell of a study: the run behind it, and the file it leaves."""

from __future__ import annotations

import json
import shutil
import time
import traceback
from collections.abc import Mapping
from contextlib import ExitStack, redirect_stderr, redirect_stdout
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from foundation.commands.parsing import one_line
from foundation.files import write_json
from foundation.study.baselines import BASELINES, baseline_metrics
from foundation.study.config import Options, as_words
from foundation.study.grid import Cell
from foundation.study.locks import Busy, held
from foundation.study.plan import AUTO, Plan, strategy_digest
from foundation.study.sources import carried, checkpoints, identity

OK, FAILED, REFUSED = "ok", "failed", "refused"
COLUMNS = (
    *("property", "size", "trial", "seed", "source", "strategy", "status", "mae_scaled", "mae_physical", "r2"),
    *("n_test", "trainable_parameters", "seconds", "epochs"),
    *("median_mae_scaled", "val_mae_scaled", "rmse_scaled", "seen_test", "error"),
)


def job_of(plan: Plan, cell: Cell) -> dict[str, Any]:
    """All that a cell's result depends on, as plain values: a cell is run again where it has changed."""
    job: dict[str, Any] = {
        "cell": asdict(cell),
        "data": plan.folder.digest(cell.target),
        "declared": plan.config.properties.get(cell.target),
        "strategy": strategy_digest(cell.strategy),
    }
    if cell.strategy not in BASELINES:
        job |= {"words": _option_words(plan, cell), "leakage": plan.leakage}
    source = plan.source(cell)
    if source is not None:
        job["source"] = identity(source, plan.config, plan.folder)
        job["same_quantity"] = sorted(plan.config.same(cell.target))
    plain: dict[str, Any] = json.loads(json.dumps(job))
    return plain


def finished(plan: Plan, cell: Cell, job: dict[str, Any]) -> dict[str, Any] | None:
    """The row of a cell that needs no computing; None where it has to be computed."""
    file = plan.cell_file(cell)
    if not file.is_file():
        return None
    content = json.loads(file.read_text())
    if content["job"] != job:
        return None
    row: dict[str, Any] = content["result"]
    again = row["status"] == FAILED and plan.retry and content["run_id"] != plan.run_id
    return None if again else row


def compute(plan: Plan, cell: Cell, job: dict[str, Any]) -> dict[str, Any] | None:
    """Compute a cell that nobody else computes, and write its file.

    Returns:
        Its row; None if another process has it.

    Raises:
        Busy: If another process is making the source or the store that it needs.
    """
    with ExitStack() as stack:
        try:
            # The lock of a process that died is not taken over in mid-run: it may be a cell that kills every process.
            stack.enter_context(held(plan.cell_lock(cell), take_over=False))
        except Busy:
            return None
        row = finished(plan, cell, job)  # by someone else, a moment ago
        if row is None:
            row = _row(plan, cell)
            record(plan, cell, job, row)
        return row


def record(plan: Plan, cell: Cell, job: dict[str, Any], row: dict[str, Any]) -> None:
    """Write the file of a finished cell."""
    write_json(plan.cell_file(cell), {"job": job, "run_id": plan.run_id, "result": row})


def row_of(cell: Cell, status: str, **values: Any) -> dict[str, Any]:
    """A row of results.csv; what is not given is empty."""
    axes = {"property" if name == "target" else name: value for name, value in asdict(cell).items()}
    return dict.fromkeys(COLUMNS) | axes | {"status": status} | values


def refusal(plan: Plan, cell: Cell) -> str | None:
    """Why a cell must not be computed; None for a sound one."""
    source = plan.source(cell)
    names = carried(source, cell.target, plan.config) if source is not None else []
    if not names:
        return None
    own = "itself" if names == [cell.target] else f"under the name {', '.join(names)}"
    return f"source {cell.source} was trained on {cell.target} {own}: it is no source for this target"


def _row(plan: Plan, cell: Cell) -> dict[str, Any]:
    reason = refusal(plan, cell)
    if reason is not None:
        return row_of(cell, REFUSED, error=reason)
    folder = plan.cell_folder(cell)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with (folder / "log.txt").open("w") as log:
        try:
            with redirect_stdout(log), redirect_stderr(log):
                metrics = _metrics(plan, cell, folder)
            row = row_of(cell, OK, **_results(metrics, cell.target, plan.scale(cell.target)))
        except Busy:
            raise
        except Exception as error:  # whatever it was: the other cells of the study do not hang on this one
            traceback.print_exc(file=log)
            told = one_line(str(error)) or "no message"
            row = row_of(
                cell, FAILED, error=told if isinstance(error, InputError) else f"{type(error).__name__}: {told}"
            )
    if row["seconds"] is None or cell.strategy == AUTO:  # whose search counts, not only what it chose
        row["seconds"] = round(time.perf_counter() - started, 1)
    if not plan.keep_models:
        _remove_models(folder)
    return row


def _metrics(plan: Plan, cell: Cell, folder: Path) -> dict[str, Any]:
    store = plan.store(cell.target)
    if cell.strategy in BASELINES:
        lists = plan.folder.splits(cell.target)
        return baseline_metrics(cell.strategy, store, cell.target, lists, cell.trial, cell.size, cell.seed)
    from foundation.commands import adapt

    source = plan.source(cell)
    words = ["--property", cell.target, "--data.store", str(store)]
    words += ["--data.splits", str(plan.folder.splits(cell.target)), "--data.trial", cell.trial]
    words += ["--train-size", str(cell.size), "--strategy", cell.strategy.replace("+", ",")]
    if plan.leakage is not None:
        words += ["--leakage", plan.leakage]
    if source is not None:
        words += ["--pretrained", *checkpoints(source, plan.config, plan.folder, plan.out)]
    words += [
        "--wandb",
        "off",
        "--out",
        str(folder),
        "--overwrite",
        "true",
        "--resume",
        "no",
        *_option_words(plan, cell),
    ]
    (folder / "metrics.json").unlink(missing_ok=True)
    adapt.main(words)
    metrics: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return metrics


def _option_words(plan: Plan, cell: Cell) -> list[str]:
    """What the recipe, the seed and the budget say to ``foundation adapt``."""
    recipe = options_of(plan, cell)
    models = recipe.get("folds") or recipe.get("seeds", 1)
    words = as_words({**recipe, "seed": cell.seed * models})  # no two cells share a member
    if plan.budget is None:
        return words
    if cell.strategy == AUTO:
        return [*words, "--budget", f"{plan.budget:g}s"]
    return [*words, f"--trainer.max_time={_clock(plan.budget / models)}"]


def options_of(plan: Plan, cell: Cell) -> Options:
    """Options of a cell's run; the encoder's only where it starts from fresh weights."""
    fresh = plan.source(cell) is None
    encoder = {f"encoder.{name}": value for name, value in plan.config.encoder.items()} if fresh else {}
    return {**encoder, **plan.config.options, **plan.config.recipe(cell.strategy).options(cell.size)}


def _clock(seconds: float) -> str:
    """Lightning's days:hours:minutes:seconds."""
    whole = max(1, round(seconds))
    return f"{whole // 86400:02d}:{whole // 3600 % 24:02d}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _results(metrics: Mapping[str, Any], target: str, scale: float) -> dict[str, Any]:
    test = metrics["test"][target]
    if test.get("mae") is None:
        raise InputError("there is no error on the test crystals: none of them carries the label")
    val = (metrics.get("val") or {}).get(target, {})
    return {
        "mae_scaled": test["mae"] * scale,
        "mae_physical": test["mae"],
        "r2": test.get("r2"),
        "n_test": test["count"],
        "trainable_parameters": metrics.get("trainable_parameters"),
        "seconds": metrics.get("seconds"),
        "epochs": metrics.get("epochs"),
        "median_mae_scaled": _times(test.get("median_predictor_mae"), scale),
        "val_mae_scaled": _times(val.get("mae"), scale),
        "rmse_scaled": _times(test.get("rmse"), scale),
        "seen_test": _seen_test(metrics, target),
    }


def _times(value: float | None, scale: float) -> float | None:
    return None if value is None else value * scale


def _seen_test(metrics: Mapping[str, Any], target: str) -> int | None:
    """How many test crystals the encoder has seen with the same quantity, by formula; None where nobody knows."""
    content: Any = metrics
    for key in ("leakage", "properties", target, "parts", "test", "same_quantity", "formula"):
        content = content.get(key) if isinstance(content, Mapping) else None
    return None if content is None else int(content)


def _remove_models(folder: Path) -> None:
    """Remove what is heavy; the configuration, the metrics and the log stay."""
    for name, within in product(("checkpoints", "plots", "model"), ("", "seed*/", "fold*/")):
        for path in folder.glob(within + name):
            shutil.rmtree(path, ignore_errors=True)
