"""What will go wrong with a job, said before it is queued."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from foundation.slurm.finding import Finding
from foundation.slurm.inputs import inputs
from foundation.slurm.submission import Submission, seconds_of

START = 300  # seconds that imports, graphs and compiling may take before the first step
LATE = 60  # seconds by which Slurm may send a signal too late
PROBE = 64 * 2**20  # bytes written to see how fast the disk is; about a checkpoint
FREE = 5 * 2**30  # bytes that a run should find: three checkpoints, logs and W&B's records


def check(job: Submission) -> Iterator[Finding]:
    """Everything that can be known from here."""
    checks: list[Callable[[Submission], Iterator[Finding]]] = [_tasks, _time, inputs, _tracking, _disk, _slurm]
    for one in checks:
        yield from one(job)


def _tasks(job: Submission) -> Iterator[Finding]:
    if "ntasks" in job.options:
        yield Finding("problem", "--ntasks: the scripts count tasks per node; use --ntasks-per-node")
    asked, gpus, several = job.argument("trainer.accelerator"), job.gpus, job.gpus_asked
    if len(set(several.values())) > 1:
        told = " and ".join(f"--{name}={job.options[name]}" for name in several)
        yield Finding("problem", f"{told} do not agree, and Slurm obeys both: add --gres=none, or ask by --gres alone")
        return
    if asked in ("gpu", "cuda") and gpus is None:
        yield Finding("problem", f"--trainer.accelerator {asked}, but no GPU is asked for: add --gres=gpu:{job.tasks}")
    elif asked == "cpu" and gpus is not None:
        yield Finding("warning", f"{gpus} GPUs a node would stand idle under --trainer.accelerator cpu: --gres=none")
    elif gpus is not None and gpus != job.tasks:
        yield Finding("problem", f"{job.tasks} tasks for {gpus} GPUs a node: one task drives one; make them equal")
    else:
        device = f"{gpus} GPUs" if gpus is not None else "processors"
        yield Finding("ok", f"{job.tasks} tasks on each of {job.nodes} nodes, for {device}")
    if job.argument("trainer.devices") or job.argument("trainer.num_nodes"):
        yield Finding("warning", "--trainer.devices and --trainer.num_nodes come from the job; leave them out")
    if job.nodes * job.tasks > 1 and (job.argument("folds") or job.argument("strategy") == "auto"):
        yield Finding("problem", "--folds and --strategy auto run in one process: one node, one task")


def _time(job: Submission) -> Iterator[Finding]:
    if job.script is not None and job.launcher is None:
        return  # its command does nothing about a signal
    saves = job.launcher != "launch_again"  # itself; else the batch shell ends it in time
    match = re.fullmatch(r"(?:([RB]*):)?(?:SIG)?(\w+?)(?:@(\d+))?", job.options.get("signal", ""))
    wanted = "--signal=USR1@SECONDS" if saves else "--signal=B:USR1@SECONDS"
    if match is None or match[2] not in ("USR1", "10"):
        end = "without having saved itself" if saves else "and does not come back"
        yield Finding("problem", f"no {wanted}: at its time limit the job ends {end}")
        return
    shell = "B" in (match[1] or "")
    if saves and shell:
        yield Finding(
            "problem", f"--signal={match[0]}: B: signals the batch shell alone, which leaves it to the tasks; {wanted}"
        )
        return
    if not saves and not shell:
        yield Finding("problem", f"--signal={match[0]}: kills the tasks, which do not know the signal; {wanted}")
        return
    ahead = int(match[3] or 60)
    needs = LATE + (3 * _seconds_to_save(_folder(job)) if saves else 0)
    if ahead < needs:
        yield Finding("problem", f"--signal={match[0]}: too late to save, which may need {needs:.0f} s; ask for more")
    limit = job.options.get("time")
    if limit is not None and limit.upper() not in ("UNLIMITED", "INFINITE", "0"):
        left = seconds_of(limit) - ahead
        if left <= START:
            yield Finding(
                "problem", f"--time={limit} leaves {left} s before the signal, and starting may take {START} s"
            )
        elif ahead >= needs:
            yield Finding("ok", f"warned {ahead} s before --time={limit}; saving may need {needs:.0f} s")
    if "requeue" not in job.options or "no-requeue" in job.options:
        yield Finding("warning", "no --requeue: where a node fails, the job does not come back by itself")
    if job.options.get("open-mode") != "append":
        yield Finding("warning", "no --open-mode=append: a requeued job would overwrite its log")


def _tracking(job: Submission) -> Iterator[Finding]:
    from foundation.tracking.server import base_url, default_mode

    mode = job.argument("wandb") or default_mode()
    if mode not in ("online", "offline", "off"):
        yield Finding("problem", f"--wandb {mode}: choose offline, online or off")
    elif mode != "online":
        yield Finding("ok", f"Weights & Biases: {mode}" + (", send it later with wandb sync" * (mode == "offline")))
    elif default_mode() != "online":
        yield Finding("problem", "--wandb online, but no key is set: wandb login, or --wandb offline")
    else:
        host = urlsplit(base_url()).netloc
        yield Finding("warning", f"Weights & Biases online: nodes must reach {host}, else it records offline")


def _disk(job: Submission) -> Iterator[Finding]:
    folder = _existing(_folder(job))
    if not os.access(folder, os.W_OK):
        yield Finding("problem", f"{folder}: runs cannot be written there; set FOUNDATION_RUNS or --out")
        return
    free = shutil.disk_usage(folder).free
    level = "ok" if free >= FREE else "problem"
    yield Finding(level, f"{free / 2**30:.0f} GB free in {folder}" + "; a run should find 5" * (level != "ok"))


def _slurm(job: Submission) -> Iterator[Finding]:
    if shutil.which("sbatch") is None:
        yield Finding("warning", "there is no sbatch here: limits of partition and account were not asked for")
        return
    if job.script is None:
        return
    done = subprocess.run(
        ["sbatch", "--test-only", *job.words], capture_output=True, text=True, timeout=60, check=False
    )
    lines = [line.removeprefix("sbatch: ") for line in (done.stderr or done.stdout).strip().splitlines()]
    yield Finding(
        "ok" if done.returncode == 0 else "problem", f"sbatch --test-only: {lines[-1] if lines else 'silent'}"
    )


def _folder(job: Submission) -> Path:
    return Path(job.argument("out") or os.environ.get("FOUNDATION_RUNS", "runs"))


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def _seconds_to_save(folder: Path) -> float:
    """How long a checkpoint takes to be on disk; 0 where nothing can be written."""
    file = _existing(folder) / f".probe.{os.getpid()}"
    started = time.monotonic()
    try:
        with file.open("wb") as handle:
            handle.write(os.urandom(PROBE))
            handle.flush()
            os.fsync(handle.fileno())
    except OSError:
        return 0.0
    finally:
        file.unlink(missing_ok=True)
    return time.monotonic() - started
