"""How near the kernels of a training step come to what the GPU can do, as its own counters say.

NVIDIA's profiler ``ncu`` runs this module as a program, and counts during the one step between its marks.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from datamodules.batching import build_graphs
from foundation.benchmarks.crystals import benchmark_crystals, benchmark_spec, optimization
from foundation.benchmarks.rates import batch_rows
from foundation.benchmarks.work import step_of
from foundation.checkpoint import build_module

_TIME = "gpu__time_duration.sum"
_MEMORY = "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed"
_ADDS, _PRODUCTS, _BOTH = (
    f"smsp__sass_thread_inst_executed_op_{kind}_pred_on.sum.per_cycle_elapsed" for kind in ("fadd", "fmul", "ffma")
)
_PEAK = "sm__sass_thread_inst_executed_op_ffma_pred_on.sum.peak_sustained"
_METRICS = (_TIME, _MEMORY, _ADDS, _PRODUCTS, _BOTH, _PEAK)


def measure_kernels(data: Path | None, batch_size: int, compile: bool, count: int = 3) -> list[dict[str, Any]] | str:
    """The kernels that take most of a training step's time.

    Args:
        data: As in ``run_benchmark``.
        batch_size: Crystals of the batch.
        compile: Whether the encoder is compiled.
        count: How many.

    Returns:
        For each its ``name``, ``launches``, ``share`` of the time of all kernels, and weighted by time the shares of
        the peak ``bandwidth`` of memory and of the peak ``arithmetic`` in single precision; in words why not, where
        there is no ``ncu`` or it may not count.
    """
    profiler = shutil.which("ncu")
    if profiler is None:
        return "there is no ncu on the PATH (NVIDIA Nsight Compute)"
    # The clocks stay as they are found: other work may share the GPU.
    command = [profiler, "--clock-control", "none", "--profile-from-start", "off", "--csv", "--page", "raw"]
    command += ["--target-processes", "application-only", "--metrics", ",".join(_METRICS)]
    job = json.dumps({"data": str(data) if data else None, "batch_size": batch_size, "compile": compile})
    done = subprocess.run([*command, sys.executable, "-m", __name__, job], capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines() or ["nothing"]
        return f"ncu failed: {next((line for line in lines if '==ERROR==' in line), lines[-1])}"
    if '"ID"' not in done.stdout:
        return "ncu counted nothing"
    return dominant_kernels(done.stdout, count)


def dominant_kernels(printed: str, count: int) -> list[dict[str, Any]]:
    """What ``ncu --csv --page raw`` printed, by kernel: see ``measure_kernels``."""
    lines = printed.splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith('"ID"'))
    units = start + 1
    table = pd.read_csv(io.StringIO("\n".join([lines[start], *lines[units + 1 :]])), thousands=",")
    table["bandwidth"] = table[_MEMORY] / 100 * table[_TIME]
    table["arithmetic"] = (table[_ADDS] + table[_PRODUCTS] + 2 * table[_BOTH]) / (2 * table[_PEAK]) * table[_TIME]
    launches = table.groupby("Kernel Name")
    kernels = launches[[_TIME, "bandwidth", "arithmetic"]].sum()
    kernels[["bandwidth", "arithmetic"]] = kernels[["bandwidth", "arithmetic"]].div(kernels[_TIME], axis=0)
    kernels["share"] = kernels[_TIME] / kernels[_TIME].sum()
    kernels["launches"] = launches.size()
    largest = kernels.nlargest(count, _TIME).drop(columns=_TIME)
    return cast("list[dict[str, Any]]", largest.reset_index(names="name").to_dict("records"))


def main(job: dict[str, Any]) -> None:
    """A few training steps, of which the profiler sees the last."""
    torch.manual_seed(0)
    module = build_module(benchmark_spec(), optimization()).to("cuda").train()
    graphs = build_graphs(benchmark_crystals(Path(job["data"]) if job["data"] else None), module.encoder.recipe)
    step = step_of(module, graphs.gather(batch_rows(len(graphs), job["batch_size"])[0]).to("cuda"))
    if job["compile"]:
        module.encoder.compile(dynamic=True)
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    torch.cuda.profiler.start()
    step()
    torch.cuda.synchronize()
    torch.cuda.profiler.stop()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
