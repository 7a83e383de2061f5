"""The Slurm scripts: well formed, and what they run for a given allocation."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ("pretrain", "adapt")  # of one run
SAVING = (*COMMANDS, "adapt_array", "sweep")  # whose tasks save themselves on a signal
EVERY = (*COMMANDS, "study", "adapt_array", "sweep")
ARRAYS = ("study", "adapt_array", "sweep")
DIRECTIVES = ("job-name", "nodes", "ntasks-per-node", "cpus-per-task", "gres", "time", "output", "open-mode")


def script(command: str) -> Path:
    return ROOT / "slurm" / f"{command}.sbatch"


def directives(command: str) -> dict[str, str]:
    text = script(command).read_text(encoding="utf-8")
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)$", text, flags=re.MULTILINE))


def launched(command: str, tmp_path: Path, *arguments: str, **job: str) -> list[str]:
    """Run the script with an srun that only prints its arguments, one a line."""
    srun = tmp_path / "srun"
    srun.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    srun.chmod(0o755)
    env = {key: value for key, value in os.environ.items() if not key.startswith("SLURM_")}
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "FOUNDATION_SLURM": str(ROOT / "slurm"), "SLURM_JOB_ID": "7", **job}
    env |= {"FOUNDATION_RUNS": "kept here"}
    done = subprocess.run(
        ["bash", str(script(command)), *arguments],
        env=env,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    words = done.stdout.splitlines()
    return words[words.index("foundation") :]


@pytest.mark.parametrize("command", EVERY)
def test_bash_accepts_it(command: str) -> None:
    subprocess.run(["bash", "-n", str(script(command))], check=True, timeout=30)


@pytest.mark.parametrize("command", SAVING)
def test_a_run_is_warned_in_time_and_may_be_requeued(command: str) -> None:
    found = directives(command)
    assert found["signal"] == "USR1@300"
    assert "requeue" in found


def test_a_study_is_warned_by_its_shell_and_may_be_requeued() -> None:
    found = directives("study")
    assert found["signal"] == "B:USR1@120"
    assert "requeue" in found


@pytest.mark.parametrize("command", EVERY)
def test_directives(command: str) -> None:
    found = directives(command)
    assert set(DIRECTIVES) <= set(found)
    assert found["job-name"] == command
    assert found["open-mode"] == "append"
    assert found["output"] == ("slurm-%x-%A_%a.out" if command in ARRAYS else "slurm-%x-%j.out")
    assert (found["nodes"], found["ntasks-per-node"]) == ("1", "1")


@pytest.mark.parametrize("command", EVERY)
def test_every_directive_precedes_the_first_command(command: str) -> None:
    lines = script(command).read_text(encoding="utf-8").splitlines()
    first_command = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in lines[first_command:])


@pytest.mark.parametrize("command", COMMANDS)
def test_one_task(command: str, tmp_path: Path) -> None:
    got = launched(command, tmp_path, "--data.store", "a store", SLURM_NNODES="1", SLURM_NTASKS_PER_NODE="1")
    shape = ["--trainer.num_nodes", "1", "--trainer.devices", "1"]
    assert got == ["foundation", command, *shape, "--data.store", "a store", "--out", f"kept here/{command}-7"]


@pytest.mark.parametrize("command", COMMANDS)
def test_devices_and_nodes_come_from_the_job(command: str, tmp_path: Path) -> None:
    got = launched(command, tmp_path, "--out=mine", SLURM_NNODES="2", SLURM_NTASKS_PER_NODE="4")
    shape = ["--trainer.num_nodes", "2", "--trainer.devices", "4", "--trainer.strategy", "ddp"]
    assert got == ["foundation", command, *shape, "--out=mine"]


def test_a_task_of_an_array_runs_the_study_as_it_is(tmp_path: Path) -> None:
    got = launched("study", tmp_path, "--out", "a folder", SLURM_ARRAY_TASK_ID="2", SLURM_ARRAY_TASK_COUNT="4")
    assert got == ["foundation", "study", "--out", "a folder"]


def test_a_task_of_an_array_adapts_by_its_line(tmp_path: Path) -> None:
    lines = tmp_path / "lines.txt"
    lines.write_text("# what differs\n--property hardness --seed 1\n\n--property band_gap --strategy full\n")
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "2"}
    got = launched("adapt_array", tmp_path, str(lines), "--data.store", "a store", **array)
    assert got[6:] == ["--data.store", "a store", "--property", "band_gap", "--strategy", "full", *got[-2:]]
    assert got[-2:] == ["--out", "kept here/adapt-7_2"]
    with pytest.raises(subprocess.CalledProcessError) as error:
        launched("adapt_array", tmp_path, str(lines), SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="3")
    assert error.value.stderr == f"{lines}: has no line 3\n"


def test_a_study_whose_time_is_over_is_ended_and_queued_again(tmp_path: Path) -> None:
    """By its own name, not that of the array; without the warning, what ends is not queued again."""
    tools = {"srun": "trap 'exit 143' TERM; echo $$ > pid; sleep 20 & wait", "scancel": "kill -TERM $(cat pid)"}
    for name, does in {**tools, "scontrol": "true"}.items():
        (tmp_path / name).write_text(f'#!/bin/bash\necho {name} "$@" >> asked\n{does}\n', encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "FOUNDATION_SLURM": str(ROOT / "slurm")}
    env |= {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "2"}
    for warn, told in ((True, ["scancel --signal=TERM 9_2", "scontrol requeue 9_2"]), (False, [])):
        for file in ("pid", "asked"):
            (tmp_path / file).unlink(missing_ok=True)
        job = subprocess.Popen(["bash", str(script("study")), "--out", "o"], env=env, cwd=tmp_path)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        if warn:
            job.send_signal(signal.SIGUSR1)
        else:
            os.kill(int((tmp_path / "pid").read_text()), signal.SIGTERM)
        assert job.wait(15) == 143
        assert (tmp_path / "asked").read_text().splitlines() == ["srun --wait=0 foundation study --out o", *told]


def test_a_number_of_a_job_that_comes_again(tmp_path: Path) -> None:
    """A new job takes a folder of its own; one that is started again finds its own, on whatever cluster."""

    def folder(cluster: str, restarts: int) -> str:
        return launched("pretrain", tmp_path, SLURM_CLUSTER_NAME=cluster, SLURM_RESTART_COUNT=str(restarts))[
            -1
        ].removeprefix("kept here/")

    assert folder("one", 0) == "pretrain-7"
    assert folder("one", 1) == "pretrain-7"
    assert folder("other", 0) == "pretrain-7-2"
    assert [folder("one", 2), folder("other", 1)] == ["pretrain-7", "pretrain-7-2"]
    assert folder("one", 0) == "pretrain-7-3"  # numbers have begun anew
    assert [folder("one", 1), folder("other", 2)] == ["pretrain-7-3", "pretrain-7-2"]
    assert folder("third", 1) == "pretrain-7-4"  # stopped before it had a folder


def test_a_worker_of_a_sweep(tmp_path: Path) -> None:
    got = launched("sweep", tmp_path, "adapt", "--journal", "a file", SLURM_ARRAY_TASK_ID="2")
    assert got == ["foundation", "sweep", "adapt", "--journal", "a file"]


def test_the_site_is_named_once(tmp_path: Path) -> None:
    site = f"set -eu; cd {tmp_path}; . {ROOT}/slurm/site.sh; echo $FOUNDATION_SLURM; site_environment"
    done = subprocess.run(["bash", "-c", site], capture_output=True, text=True, check=True, timeout=30)
    assert done.stdout == f"{ROOT}/slurm\n"
