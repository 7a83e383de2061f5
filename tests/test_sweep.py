"""`foundation sweep`: trials are shared by a journal, and the best is named."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from conftest import Command
from testing import QUIET, TINY

from foundation.commands import sweep
from foundation.slurm.job import Job

pytest.importorskip("optuna")


class Trained:
    """In the place of a command's process: the loss is the distance of the rate from 0.003."""

    started: list[list[str]]
    signals: list[int]  # for the worker, while its first process runs
    code = 0

    def __init__(self, words: list[str], **_: Any) -> None:
        Trained.started.append(words)
        self.returncode = self.code
        rate = float(next(word for word in words if word.startswith("--rate=")).partition("=")[2])
        folder = Path(words[words.index("--out") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "metrics.csv").write_text(f"step,val/loss\n1,9.0\n2,{abs(rate - 0.003)}\n3,\n")

    def communicate(self, timeout: float) -> tuple[None, str]:
        for number in Trained.signals:
            os.kill(os.getpid(), number)
        Trained.signals = []
        return None, "foundation: error: no such option"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> type[Trained]:
    Trained.started, Trained.signals, Trained.code = [], [], 0
    monkeypatch.setattr(subprocess, "Popen", Trained)
    return Trained


def test_trials_go_on_in_the_same_journal(foundation: Command, trained: type[Trained], tmp_path: Path) -> None:
    words = ["sweep", "adapt", "--journal", tmp_path / "j", "--vary", "rate=1e-4:1e-1:log", "--vary", "kind=a,b"]
    assert foundation(*words, "--trials", 3, "--", "--property", "x").code == 0
    answer = foundation(*words, "--trials", 8, "--", "--property", "x")
    assert answer.code == 0, answer.err
    assert len(trained.started) == 8
    assert trained.started[0][:6] == [sys.executable, "-m", "foundation", "adapt", "--property", "x"]
    losses = [abs(float(words[6].partition("=")[2]) - 0.003) for words in trained.started]
    assert (
        f"best of 8 trials: val/loss {min(losses):.6g}, {tmp_path}/j-trials/{losses.index(min(losses))}" in answer.out
    )
    assert {words[7] for words in trained.started} <= {"--kind=a", "--kind=b"}


def test_options_that_are_refused_end_it(foundation: Command, trained: type[Trained], tmp_path: Path) -> None:
    trained.code = 2
    answer = foundation("sweep", "adapt", "--journal", tmp_path / "j", "--vary", "rate=0.1:0.2", "--trials", 5)
    assert answer.code == 2
    assert answer.err.splitlines()[-1] == "foundation: error: adapt: no such option"
    assert len(trained.started) == 1


def test_one_real_trial(foundation: Command, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a worker that is the second task of its job: the trial is a single process all the same."""
    for name, value in {"JOB_ID": "7", "NTASKS": "2", "PROCID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    run = ["--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET, "--trainer.max_epochs", 1]
    words = ["sweep", "pretrain", "--journal", tmp_path / "j", "--trials", 1, "--vary", "data.batch_size=4:16"]
    answer = foundation(*words, "--", *run)
    assert answer.code == 0, answer.err
    assert "best of 1 trials: val/loss 0." in answer.out
    assert (tmp_path / "j-trials" / "0" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("text", ["rate", "rate=", "rate=low:high"])
def test_a_range_that_is_none(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError):
        sweep.varied(text)


def states(journal: Path) -> list[str]:
    return [trial.state.name for trial in sweep._open(journal).trials]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGTERM])
def test_a_stopped_worker_leaves_its_trial_to_the_next(
    foundation: Command, trained: type[Trained], tmp_path: Path, number: int
) -> None:
    words = ["sweep", "adapt", "--journal", tmp_path / "j", "--vary", "rate=0.1:0.2", "--trials", 2]
    trained.signals, trained.code = [number], 128 + number
    answer = foundation(*words)
    assert answer.code == 128 + number
    assert f"stopped by {signal.Signals(number).name}; go on with the same command" in answer.err
    assert states(tmp_path / "j") == ["FAIL", "WAITING"]
    trained.code = 0
    assert "best of 2 trials" in foundation(*words).out
    assert trained.started[1] == [*trained.started[0], "--resume", "auto"]
    assert len(trained.started) == 3


def test_the_trial_of_a_dead_worker_does_not_count(
    foundation: Command, trained: type[Trained], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One whose process is gone, and one whose job on another node is over; one that runs elsewhere counts."""
    study, trials = sweep._open(tmp_path / "j"), tmp_path / "j-trials"
    trials.mkdir()
    for place, pid in (("here", 2**22 + 1), ("elsewhere", 1), ("elsewhere", 1)):
        trial = study.ask()
        trial.suggest_float("rate", 0.1, 0.2)
        trial.set_user_attr("job", {"id": f"{trial.number}", "restarts": 0, "cluster": "c"})
        host = os.uname().nodename if place == "here" else place
        (trials / f"{trial.number}.lock").write_text(f'{{"pid": {pid}, "host": "{host}", "started": "1"}}')
    monkeypatch.setattr(Job, "is_over", lambda job: job.id == "1")
    words = ["sweep", "adapt", "--journal", tmp_path / "j", "--vary", "rate=0.1:0.2", "--trials", 3]
    assert "best of 2 trials" in foundation(*words).out
    assert [words[-4:-2] for words in trained.started] == [["--out", f"{trials}/{number}"] for number in (0, 1)]
    assert states(tmp_path / "j") == ["FAIL", "FAIL", "RUNNING", "COMPLETE", "COMPLETE"]


def scontrol(folder: Path, says: str) -> None:
    """One that writes down what it is asked."""
    tool = folder / "scontrol"
    tool.write_text(f'#!/bin/sh\necho "$@" >> {folder}/asked\n{says}\n')
    tool.chmod(0o755)


@pytest.mark.parametrize(
    ("says", "over"),
    [
        ("echo JobId=1 JobState=RUNNING Restarts=0", False),
        ("echo JobId=1 JobState=RUNNING Restarts=1", True),
        ("echo JobId=1 JobState=FAILED Restarts=0", True),
        ("echo slurm_load_jobs error: Invalid job id specified >&2; exit 1", True),
        ("echo slurm_load_jobs error: Unable to contact slurm controller >&2; exit 1", False),
    ],
)
def test_a_job_that_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, over: bool) -> None:
    scontrol(tmp_path, says)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_CLUSTER_NAME", "c")
    assert Job("1", 0, "c").is_over() == over
    assert not Job("1", 0, "another").is_over()


def test_a_worker_whose_time_is_over(tiny_store: Path, tmp_path: Path) -> None:
    """Its run saves itself, the job is started again once, and goes on with that run."""
    scontrol(tmp_path, "echo JobState=RUNNING")
    options = ["--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET, "--trainer.max_epochs", 12]
    words = ["--journal", tmp_path / "j", "--trials", 1, "--vary", "data.batch_size=4,5", "--", *options]
    command = [sys.executable, "-m", "foundation", "sweep", "pretrain", *map(str, words)]
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "OMP_NUM_THREADS": "1"}
    worker = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    run, until = tmp_path / "j-trials" / "0", time.monotonic() + 120
    while not (run / "checkpoints" / "last.ckpt").exists():
        assert time.monotonic() < until
        assert worker.poll() is None
        time.sleep(0.1)
    worker.send_signal(signal.SIGUSR1)
    assert worker.communicate(timeout=60)[1].splitlines()[-1] == (
        "foundation: stopped by SIGUSR1; having job 7 started again"
    )
    assert worker.returncode == 0
    assert (tmp_path / "asked").read_text().splitlines() == ["show job -o 7", "requeue 7"]
    assert states(tmp_path / "j") == ["FAIL", "WAITING"]
    again = subprocess.run(command, env=env | {"SLURM_RESTART_COUNT": "1"}, capture_output=True, text=True, timeout=120)
    assert again.returncode == 0, again.stderr
    losses = pd.read_csv(run / "metrics.csv")["val/loss"].dropna()
    assert len(losses) == 12
    assert f"best of 1 trials: val/loss {losses.iloc[-1]:.6g}, {run}\n" in again.stdout
    assert sorted(path.name for path in run.parent.iterdir() if path.is_dir()) == ["0"]
