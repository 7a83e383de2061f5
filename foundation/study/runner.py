"""Running the cells of a study, in this process or in several."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from typing import Any

import pandas as pd
from tqdm import tqdm

from foundation.process import keep_freed_memory
from foundation.study.cells import FAILED, OK, compute, finished, job_of, record, row_of
from foundation.study.grid import Cell
from foundation.study.locks import Busy, holder_pid, release_dead
from foundation.study.plan import Plan
from foundation.study.results import write_report, write_results

REPORT_EVERY = 10  # cells
POLL = 0.5  # seconds


def run_study(
    plan: Plan, grid: Sequence[Cell], own: Sequence[Cell], jobs: int = 1, reference: str | None = None
) -> tuple[pd.DataFrame, list[str]]:
    """Compute the cells that are not there yet, then write the table and the report.

    Args:
        plan: The study.
        grid: All its cells; the table is made of these and of what else stands in its folder.
        own: The cells to compute here.
        jobs: Processes at a time; with one, cells run in this process.
        reference: CSV of another work's results; None for the configured one.

    Returns:
        The table of all results, and what they say in a few lines.
    """
    for cell in own:
        release_dead(plan.cell_lock(cell))
    progress = Progress(plan, grid, own, reference)
    progress.update()
    if jobs == 1 or progress.remaining <= 1:
        work(plan, grid, own, progress.update)
    else:
        _run_processes(plan, grid, own, min(jobs, progress.remaining), progress)
    progress.close()
    table = write_results(plan, grid)
    return table, write_report(plan, table, reference)


def work(plan: Plan, grid: Sequence[Cell], own: Sequence[Cell], told: Callable[[], None]) -> None:
    """Compute cells one after another until each is finished or computed by somebody else.

    A cell whose source another process is making waits, and other cells come first.
    """
    waiting = list(own)
    while waiting:
        again: list[Cell] = []
        for cell in waiting:
            job = job_of(plan, cell)
            if finished(plan, cell, job) is not None:
                continue
            try:
                if compute(plan, cell, job) is not None:
                    write_results(plan, grid)
                    told()
            except Busy:
                again.append(cell)
        if len(again) == len(waiting):
            time.sleep(POLL)
        waiting = again


class Progress:
    """The bar over cells, a line for each that is finished, and a report now and then."""

    def __init__(self, plan: Plan, grid: Sequence[Cell], own: Sequence[Cell], reference: str | None) -> None:
        self.plan, self.grid, self.reference = plan, grid, reference
        self.open = {cell: job_of(plan, cell) for cell in own}
        self.total = len(own)
        self.bar = tqdm(total=self.total, desc="study", unit=" cells", disable=None)
        self.started = False
        self.reported = 0

    @property
    def remaining(self) -> int:
        """Cells that are not finished."""
        return len(self.open)

    def update(self) -> None:
        """Look which cells have been finished since the last time."""
        for cell in list(self.open):
            row = finished(self.plan, cell, self.open[cell])
            if row is None:
                continue
            del self.open[cell]
            self.bar.update()
            self.reported += 1
            if self.started:
                tqdm.write(_line(cell, row))
        if self.started and self.reported >= REPORT_EVERY:
            self.reported = 0
            write_report(self.plan, write_results(self.plan, self.grid), self.reference)
        if not self.started:
            self.started, self.reported = True, 0
            done = self.total - self.remaining
            tqdm.write(f"{self.total} cells, {done} finished before, {self.remaining} to compute, in {self.plan.out}")

    def close(self) -> None:
        """Take the bar away, and say what others are computing."""
        self.bar.close()
        for cell in self.open:
            print(f"{cell.name}: computed by another process; if it is gone, remove {self.plan.cell_lock(cell)}")


def _line(cell: Cell, row: dict[str, Any]) -> str:
    name = f"{cell.target} {cell.size} {cell.trial} seed {cell.seed}, {cell.source}, {cell.strategy}"
    if row["status"] != OK:
        return f"{name}: {row['status']}: {row['error']}"
    told = f"{name}: MAE {row['mae_physical']:.4g}, scaled {row['mae_scaled']:.4f}, {row['seconds']:.0f} s"
    return told + (f"; the encoder has seen {row['seen_test']} of its test labels" if row["seen_test"] else "")


def _run_processes(plan: Plan, grid: Sequence[Cell], own: Sequence[Cell], jobs: int, progress: Progress) -> None:
    """Processes that take cells from one another's hands by their locks; one that dies is replaced."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // jobs)))
    context = multiprocessing.get_context("spawn")

    def start() -> SpawnProcess:
        process = context.Process(target=_worker, args=(plan, list(grid), list(own)))
        process.start()
        return process

    running = [start() for _ in range(jobs)]
    try:
        while running:
            time.sleep(POLL)
            progress.update()
            for process in [process for process in running if not process.is_alive()]:
                running.remove(process)
                if process.exitcode and bury(plan, own, process):
                    running.append(start())
        progress.update()
    finally:
        for process in running:
            process.terminate()
            process.join()


def _worker(plan: Plan, grid: Sequence[Cell], own: Sequence[Cell]) -> None:
    keep_freed_memory()  # a new process, which did not come by the command
    with leaving_cleanly():
        work(plan, grid, own, lambda: None)


@contextmanager
def leaving_cleanly() -> Iterator[None]:
    """Let SIGTERM, as of a scheduler, unwind this process, so that it gives its locks back."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def bury(plan: Plan, own: Sequence[Cell], process: SpawnProcess) -> bool:
    """Record the cell of a process that died, such as for want of memory, as failed.

    Returns:
        Whether it had one: a process that dies without a cell is not to be replaced.

    Raises:
        RuntimeError: If it had none.
    """
    for cell in own:
        lock = plan.cell_lock(cell)
        if holder_pid(lock) == process.pid:
            error = f"its process ended with exit code {process.exitcode}; see {plan.cell_folder(cell) / 'log.txt'}"
            record(plan, cell, job_of(plan, cell), row_of(cell, FAILED, error=error))
            lock.unlink(missing_ok=True)
            return True
    raise RuntimeError(f"a process of the study ended with exit code {process.exitcode}")
