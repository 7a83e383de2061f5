"""`foundation slurm check`: what it knows of a job, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Command

from datamodules.errors import InputError
from foundation.slurm import check as checks
from foundation.slurm.submission import read_submission, seconds_of

SCRIPT = str(Path(__file__).resolve().parent.parent / "slurm" / "pretrain.sbatch")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "PROBE", 1024)
    monkeypatch.setenv("FOUNDATION_RUNS", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin/nowhere")  # no sbatch
    for name in ("PARTITION", "GRES", "TIMELIMIT"):
        monkeypatch.delenv(f"SBATCH_{name}", raising=False)


def told(*words: object) -> dict[str, list[str]]:
    """Level -> lines."""
    found: dict[str, list[str]] = {"ok": [], "warning": [], "problem": []}
    for level, text in checks.check(read_submission([str(word) for word in words])):
        found[level].append(text)
    return found


def test_a_sound_job(tiny_store: Path) -> None:
    found = told(SCRIPT, "--data.store", tiny_store, "--wandb", "offline")
    assert found["problem"] == []
    assert any(line.startswith("1 tasks on each of 1 nodes, for 1 GPUs") for line in found["ok"])
    assert any(line.startswith("warned 300 s before --time=24:00:00") for line in found["ok"])


@pytest.mark.parametrize(
    ("options", "arguments", "problem"),
    [
        (["--ntasks-per-node=4"], [], "4 tasks for 1 GPUs a node"),
        (["--ntasks=4"], [], "use --ntasks-per-node"),
        (["--gres=none"], ["--trainer.accelerator", "gpu"], "no GPU is asked for"),
        (["-t", "00:06:00"], [], "leaves 60 s before the signal"),
        (["--signal=USR1@30"], [], "too late to save"),
        (["--signal=TERM@300"], [], "no --signal=USR1"),
        ([], ["--data.store", "nowhere"], "--data.store nowhere: not there"),
        ([], ["--wandb", "online"], "no key is set"),
        (["--ntasks-per-node=2", "--gres=gpu:2"], ["--folds", "5"], "run in one process"),
    ],
)
def test_what_will_go_wrong(options: list[str], arguments: list[str], problem: str) -> None:
    assert [line for line in told(*options, SCRIPT, *arguments)["problem"] if problem in line] != []


def test_a_slow_or_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checks, "_seconds_to_save", lambda folder: 100.0)
    monkeypatch.setattr(checks, "FREE", 2**60)
    problems = told(SCRIPT)["problem"]
    assert any("too late to save, which may need 360 s" in line for line in problems)
    assert any("GB free" in line for line in problems)


def test_the_exit_code(foundation: Command, tiny_store: Path) -> None:
    assert foundation("slurm", "check", SCRIPT, "--data.store", tiny_store).code == 0
    answer = foundation("slurm", "check", "--nodes", 2, "--ntasks-per-node=2", SCRIPT)
    assert answer.code == 1
    assert "problem: 2 tasks for 1 GPUs a node" in answer.out
    assert foundation("slurm", "check", "no.sbatch").code == 2
    assert foundation("slurm", "cheque").code == 2


def test_options_win_over_the_site_and_that_over_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_GRES", "gpu:h100:8")
    assert read_submission([SCRIPT]).gpus == 8
    job = read_submission(["-N", "2", "--gres", "gpu:a100:4", SCRIPT, "--data.store=s"])
    assert (job.nodes, job.gpus, job.argument("data.store")) == (2, 4, "s")
    assert read_submission(["--gres=none", SCRIPT]).gpus is None


def test_limits_of_time() -> None:
    given = {"5": 300, "5:30": 330, "1:00:00": 3600, "2-0": 172800, "1-02:03:04": 93784}
    assert {text: seconds_of(text) for text in given} == given
    with pytest.raises(InputError, match="no time"):
        seconds_of("soon")
