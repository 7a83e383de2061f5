"""On a real Slurm: runs that are requeued at random moments end as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Moment, right_behind_the_last_save, seen
from test_training import differing
from testing import TINY

from foundation.training.checkpoint_files import is_whole

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
PARTS += ("current_model_state", "averaging_state", "exact_state")
REQUEUES = int(os.environ.get("REQUEUES", "5"))
PROPERTIES = ("--data.properties", "formation_energy_per_atom,band_gap")
LAYOUTS = {"two nodes with a task each": (2, 1), "one node with two tasks": (1, 2)}


def slurm(*words: object) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{words}: {done.stderr}"
    return done.stdout.strip()


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """One that answers, or one of our own where this machine can have it."""
    missing = [tool for tool in ("sbatch", "srun", "scontrol", "sinfo") if shutil.which(tool) is None]
    if missing:
        pytest.skip(f"no Slurm: {', '.join(missing)} not found (Debian: slurmctld slurmd slurm-client munge)")
    idle = subprocess.run(["sinfo", "-h", "-N", "-o", "%N"], capture_output=True, text=True, timeout=60, check=False)
    if idle.returncode == 0 and len(set(idle.stdout.split())) >= 2:
        yield
        return
    if os.geteuid() != 0 or shutil.which("slurmctld") is None or shutil.which("munged") is None:
        pytest.skip("no Slurm of two nodes answers, and starting one needs root, slurmctld, slurmd and munged")
    os.environ["SLURM_CONF"] = f"{os.environ.get('CLUSTER_DIR', '/var/tmp/foundation-slurm')}/slurm.conf"
    subprocess.run([HERE / "cluster", "start"], check=True, timeout=120)
    yield
    subprocess.run([HERE / "cluster", "stop"], check=True, timeout=120)


class Run:
    """A job of one of the scripts on the tiny store.

    Args:
        store: The store.
        out: Folder for its log, its run and the crystals it saw.
        options: Of sbatch.
        step: Seconds that a training step takes at least.
        script: Of slurm/.
        words: Its first arguments.
        moments: In which it is signalled or killed, each in another start.
    """

    def __init__(
        self,
        store: Path,
        out: Path,
        *options: object,
        step: float = 0.3,
        script: str = "pretrain",
        words: Sequence[object] = PROPERTIES,
        moments: Sequence[Moment] = (),
    ) -> None:
        out.mkdir(parents=True, exist_ok=True)
        tool = out / "bin" / "foundation"
        tool.parent.mkdir(exist_ok=True)
        tool.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE}/watched.py "$@"\n')
        tool.chmod(0o755)
        env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_") or key == "SLURM_CONF"}
        env |= {"PATH": f"{tool.parent}:{env['PATH']}", "PYTHONPATH": f"{ROOT}:{HERE.parent}", "SEEN": str(out)}
        env |= {"FOUNDATION_SLURM": f"{ROOT}/slurm", "FOUNDATION_RUNS": str(out), "OMP_NUM_THREADS": "1"}
        env |= {"STEP_SECONDS": str(step), "GLOO_SOCKET_IFNAME": "lo", "WANDB_MODE": "offline", "MPLBACKEND": "agg"}
        env |= {"MOMENTS": json.dumps({start: [asdict(moment)] for start, moment in enumerate(moments)})}
        words = [*words, "--data.store", store, *TINY]
        words += [
            "--compile",
            "false",
            "--trainer.accelerator",
            "cpu",
            "--data.batch_size",
            4,
            "--trainer.max_epochs",
            6,
        ]
        own = ["--gres=none", "--cpus-per-task=1", "--mem=1500", f"--output={out}/log.txt", *options]
        command = ["sbatch", "--parsable", *own, f"{ROOT}/slurm/{script}.sbatch", *words]
        done = subprocess.run([str(word) for word in command], env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        self.out, self.job = out, done.stdout.strip()
        self.last = out / f"{script}-{self.job}" / "checkpoints" / "last.ckpt"

    def shown(self, what: str, job: str | None = None) -> str:
        """A field of `scontrol show job`."""
        found = re.search(rf"\b{what}=(\S+)", slurm("scontrol", "show", "job", "-o", job or self.job))
        assert found is not None
        return found[1]

    def until(self, true: Callable[[], bool], seconds: float = 240) -> None:
        """Wait."""
        end = time.monotonic() + seconds
        while not true():
            assert time.monotonic() < end, f"waited {seconds} s in vain: {self.log()}"
            time.sleep(0.3)

    def trains(self) -> None:
        """Wait until it has taken another step."""
        before = len(seen(self.out)[0])
        self.until(lambda: len(seen(self.out)[0]) > before)

    def ends(self, state: str = "COMPLETED", seconds: float = 240) -> None:
        """Wait for the end, which is to be this one."""
        over = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
        self.until(lambda: self.shown("JobState") in over, seconds)
        assert self.shown("JobState") == state, self.log()

    def log(self) -> str:
        return (self.out / "log.txt").read_text() if (self.out / "log.txt").exists() else "no log"

    def content(self, name: str = "pretrain-*") -> dict[str, Any]:
        (file,) = self.out.glob(f"{name}/checkpoints/last.ckpt")
        loaded: dict[str, Any] = torch.load(file, weights_only=True)
        return loaded


@pytest.fixture(scope="module")
def whole(cluster: None, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run(tiny_store, tmp_path_factory.mktemp("whole"), "--nodes=1", "--ntasks-per-node=2", step=0)
    run.ends()
    return run


def same_as(whole: Run, run: Run) -> None:
    """The same to the last bit, no batch lost and none repeated."""
    assert_the_same_end(whole.content(), run.content())
    assert seen(run.out, 2) == seen(whole.out, 2)


def assert_the_same_end(one: dict[str, Any], two: dict[str, Any]) -> None:
    """All that a checkpoint holds of training, to the last bit."""
    assert [place for part in PARTS for place in differing(one[part], two[part], part)] == []


@pytest.mark.parametrize(("nodes", "tasks"), LAYOUTS.values(), ids=LAYOUTS)
def test_requeued_at_random_moments(whole: Run, tiny_store: Path, tmp_path: Path, nodes: int, tasks: int) -> None:
    draw = random.Random(nodes)
    run = Run(tiny_store, tmp_path / "run", f"--nodes={nodes}", f"--ntasks-per-node={tasks}")
    for requeue in range(REQUEUES):
        run.trains()
        time.sleep(draw.uniform(0, 2))
        slurm("scancel", f"--signal={draw.choice(['USR1', 'USR1', 'TERM'])}", run.job)
        run.until(lambda requeue=requeue: int(run.shown("Restarts")) == requeue + 1)
    run.ends()
    assert run.shown("Restarts") == str(REQUEUES)
    same_as(whole, run)
    recorded = [path.name for path in run.out.glob("pretrain-*/wandb/offline-run-*")]
    assert len(recorded) == REQUEUES + 1
    assert len({name.split("-")[3] for name in recorded}) == 1


def test_a_run_longer_than_its_time_limit(whole: Run, tiny_store: Path, tmp_path: Path) -> None:
    """Slurm itself sends the signal, here a minute before the end of three; the steps alone take that long."""
    run = Run(tiny_store, tmp_path / "run", "--ntasks-per-node=2", "--time=3", "--signal=USR1@60", step=5)
    run.ends(seconds=900)
    assert int(run.shown("Restarts")) >= 1
    assert " by SIGUSR1; saved in " in run.log()
    same_as(whole, run)


def test_preempted_by_a_job_of_another_partition(whole: Run, tiny_store: Path, tmp_path: Path) -> None:
    if "urgent" not in slurm("sinfo", "-h", "-o", "%R").split():
        pytest.skip("no partition 'urgent' whose jobs take the place of others")
    run = Run(tiny_store, tmp_path / "run", "--nodes=2", "--ntasks-per-node=1")
    run.trains()
    words = ["--parsable", "--partition=urgent", "--nodes=2", "--exclusive", f"--output={tmp_path}/urgent.txt"]
    urgent = slurm("sbatch", *words, "--wrap", "sleep 5")
    run.until(lambda: run.shown("JobState", urgent) == "COMPLETED")
    run.ends()
    assert run.shown("Restarts") == "1"
    assert " by SIGTERM; saved in " in run.log()
    same_as(whole, run)


def test_a_signal_while_the_program_starts(cluster: None, tiny_store: Path, tmp_path: Path) -> None:
    run = Run(tiny_store, tmp_path / "run", step=0)
    run.until(lambda: run.shown("JobState") == "RUNNING")
    time.sleep(2)
    slurm("scancel", "--signal=USR1", run.job)
    run.ends()
    assert run.shown("Restarts") == "1"
    assert "stopped before its first step by SIGUSR1" in run.log()


def test_a_cancelled_job_stays_away(cluster: None, tiny_store: Path, tmp_path: Path) -> None:
    run = Run(tiny_store, tmp_path / "run")
    run.trains()
    slurm("scancel", run.job)
    run.ends("CANCELLED")
    time.sleep(3)
    assert run.shown("JobState") == "CANCELLED"
    assert run.content()["global_step"] > 0


def test_one_task_of_an_array_is_requeued_and_the_other_is_not(cluster: None, tiny_store: Path, tmp_path: Path) -> None:
    run = Run(tiny_store, tmp_path / "run", "--array=1-2")
    run.until(lambda: len(list(run.out.glob(f"pretrain-{run.job}_*/config.yaml"))) == 2)
    run.trains()
    slurm("scancel", "--signal=USR1", f"{run.job}_2")
    for task, restarts in ((1, "0"), (2, "1")):
        name = f"{run.job}_{task}"
        run.until(lambda name=name: run.shown("JobState", name) == "COMPLETED")
        assert run.shown("Restarts", name) == restarts
    steps = [torch.load(file, weights_only=True)["global_step"] for file in run.out.glob("pretrain-*/*/last.ckpt")]
    assert steps[0] == steps[1]


def test_signals_that_come_at_the_wrong_moment(whole: Run, tiny_store: Path, tmp_path: Path) -> None:
    """During validation, during a save, and twice in a row, to both tasks; Slurm sends them when the first is there."""
    moments = [Moment("validate"), Moment("save"), Moment("train", 2, times=2)]
    run = Run(tiny_store, tmp_path / "run", "--nodes=2", "--ntasks-per-node=1", step=0, moments=moments)
    run.ends()
    assert re.findall(r"stopped at step (\d+) by SIGUSR1; saved", run.log()) == ["6", "6", "8"]
    assert run.shown("Restarts") == "3"
    same_as(whole, run)


def test_one_of_two_tasks_is_killed(whole: Run, tiny_store: Path, tmp_path: Path) -> None:
    """Slurm ends the other; the run goes on behind its last save, submitted again or its last job queued again."""
    kills = [("start", 1, signal.SIGKILL, 1), ("train", 9, signal.SIGKILL, 1), ("record", 50, signal.SIGKILL)]
    folder = tmp_path / "pretrain-killed"
    words, last = [*PROPERTIES, "--out", folder, "--resume", "auto"], folder / "checkpoints" / "last.ckpt"
    for kill in kills:
        with right_behind_the_last_save(tmp_path, whole.out, last, 2):
            moments = [Moment(*kill)]
            run = Run(tiny_store, tmp_path, "--ntasks-per-node=2", step=0, words=words, moments=moments)
            run.ends("FAILED")
    (torn,) = folder.glob("checkpoints/.*.writing")
    assert not is_whole(torn)
    assert run.content()["global_step"] == 6
    with right_behind_the_last_save(tmp_path, whole.out, last, 2):
        slurm("scontrol", "requeue", run.job)
        run.ends()
    assert_the_same_end(whole.content(), run.content())


LINES = ("--property band_gap --strategy full", "--property shear_modulus --strategy layer_decay")


@pytest.fixture(scope="module")
def adapted(whole: Run, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An array of adaptations that nothing disturbs."""
    out = tmp_path_factory.mktemp("adapted")
    return Run(tiny_store, out, "--array=1-2", step=0, script="adapt_array", words=array_words(whole, out))


def array_words(whole: Run, out: Path) -> list[object]:
    file = out / "lines.txt"
    file.write_text(f"# what differs\n{LINES[0]}\n\n{LINES[1]}\n")
    return [file, "--pretrained", whole.last]


def assert_adapted_as(adapted: Run, task: int, run: Run, name: str) -> None:
    """The same end as that of a task of the array that nothing disturbed."""
    adapted.until(lambda: adapted.shown("JobState", f"{adapted.job}_{task}") == "COMPLETED")
    assert_the_same_end(adapted.content(f"adapt-{adapted.job}_{task}"), run.content(name))


def test_a_task_of_an_array_of_adaptations_goes_on(whole: Run, adapted: Run, tiny_store: Path, tmp_path: Path) -> None:
    """Both end with the weights of an array that nothing disturbed, each with those of its own line."""
    run = Run(tiny_store, tmp_path, "--array=1-2", script="adapt_array", words=array_words(whole, tmp_path))
    run.until(lambda: (run.out / f"adapt-{run.job}_2" / "checkpoints" / "last.ckpt").exists())
    slurm("scancel", "--signal=USR1", f"{run.job}_2")
    for task, restarts in ((1, "0"), (2, "1")):
        name = f"{run.job}_{task}"
        run.until(lambda name=name: run.shown("JobState", name) == "COMPLETED")
        assert run.shown("Restarts", name) == restarts
        assert_adapted_as(adapted, task, run, f"adapt-{name}")
    assert " by SIGUSR1; saved in " in run.log()


def test_an_adaptation_goes_on(whole: Run, adapted: Run, tiny_store: Path, tmp_path: Path) -> None:
    words = [*LINES[1].split(), "--pretrained", whole.last]
    run = Run(tiny_store, tmp_path / "run", script="adapt", words=words)
    run.trains()
    slurm("scancel", "--signal=USR1", run.job)
    run.ends()
    assert run.shown("Restarts") == "1"
    assert " by SIGUSR1; saved in " in run.log()
    assert_adapted_as(adapted, 2, run, f"adapt-{run.job}")
