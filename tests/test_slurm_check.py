"""`foundation slurm check`: what it knows of a job, and what it says."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import Command

from datamodules.errors import InputError
from foundation.slurm import check as checks
from foundation.slurm.submission import read_submission, seconds_of

SCRIPTS = Path(__file__).resolve().parent.parent / "slurm"
SCRIPT = str(SCRIPTS / "pretrain.sbatch")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checks, "PROBE", 1024)
    monkeypatch.setenv("FOUNDATION_RUNS", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin/nowhere")  # no sbatch
    for name in ("PARTITION", "GRES", "TIMELIMIT", "GPUS", "SIGNAL"):
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
        ([], ["--data.store", "nowhere"], "--data.store nowhere: no such store"),
        ([], [], "no --data.store"),
        ([], ["--config", "nowhere.yaml"], "--config: no configuration file 'nowhere.yaml'"),
        ([], ["--pretrained", "nowhere.ckpt"], "--pretrained nowhere.ckpt: no checkpoint there"),
        ([], ["--wandb", "onlin"], "--wandb onlin: choose offline, online or off"),
        (["--gpus=4"], [], "--gpus=4 and --gres=gpu:1 do not agree"),
        (["--gpus-per-task=2", "--gres=none"], [], "1 tasks for 2 GPUs a node"),
        (["--gres=gpu:4,nvme:1"], [], "1 tasks for 4 GPUs a node"),
        (["--signal=B:USR1@300"], [], "B: signals the batch shell alone"),
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


@pytest.mark.parametrize(
    ("options", "gpus"),
    [
        (["--gpus=8", "--nodes=2", "--gres=none"], 4),
        (["--gpus=a100:4", "--gres=none"], 4),
        (["--gpus-per-task=1", "--ntasks-per-node=4", "--gres=none"], 4),
        (["--gpus-per-node=4", "--gres=gpu:4,nvme:1"], 4),
        (["--gres=nvme:1,gpu:a100:4(S:0-1)"], 4),
        (["--gres=gpu"], 1),
        (["--gres=nvme:2"], None),
    ],
)
def test_every_way_to_ask_for_gpus(options: list[str], gpus: int | None) -> None:
    assert read_submission([*options, SCRIPT]).gpus == gpus


def test_the_environment_calls_the_time_limit_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SBATCH_TIMELIMIT", "5")
    assert any("--time=5 leaves 0 s before the signal" in line for line in told(SCRIPT)["problem"])


def test_a_folder_that_is_no_store(tmp_path: Path) -> None:
    assert any(
        f"--data.store {tmp_path}: not a store" in line for line in told(SCRIPT, "--data.store", tmp_path)["problem"]
    )


def test_a_store_that_a_configuration_names(tiny_store: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"data: {{store: {tiny_store}}}\npretrained: [nowhere.ckpt]\n")
    found = told(SCRIPT, "--config", file)
    assert any(line.startswith(f"--data.store {tiny_store}: on a ") for line in found["ok"] + found["warning"])
    assert [line for line in found["problem"] if "--data.store" in line] == []
    assert any("--pretrained nowhere.ckpt: no checkpoint" in line for line in found["problem"])
    file.write_text("data: {store: nowhere}\n")
    assert any("--data.store nowhere: no such store" in line for line in told(SCRIPT, "--config", file)["problem"])


def test_lines_of_an_array(tiny_store: Path, tmp_path: Path) -> None:
    script, lines = SCRIPTS / "adapt_array.sbatch", tmp_path / "lines.txt"
    assert (
        f"{lines}: no such file of lines" in told("--array=1-2", script, lines, "--data.store", tiny_store)["problem"]
    )
    lines.write_text(f"# stores\n--data.store {tiny_store} --seed 1\n\n--data.store nowhere\n")
    found = told("--array=1-3%2", script, lines)["problem"]
    assert f"--array=1-3%2: {lines} has lines 1 to 2" in found
    assert [line for line in found if "--data.store" in line] == [
        "--data.store nowhere: no such store; make one with `foundation data import`"
    ]
    assert "no --array: give the tasks, such as --array=1-8" in told(script, lines)["problem"]


def test_a_study(tmp_path: Path) -> None:
    script = SCRIPTS / "study.sbatch"
    assert told(script, "--data", tmp_path)["problem"] == []
    found = told(script, "--data", "nowhere", "--config", "no.yaml", "--pretrained", "mine=no.ckpt")["problem"]
    assert [line.partition(";")[0] for line in found if line.startswith("--data")] == ["--data nowhere: no such folder"]
    assert any(line.startswith("--config: no configuration file 'no.yaml'") for line in found)
    assert any(line.startswith("--pretrained no.ckpt: no checkpoint there") for line in found)
    assert any("kills the tasks" in line for line in told("--signal=USR1@300", script, "--data", tmp_path)["problem"])


def test_a_sweep(tiny_store: Path, tmp_path: Path) -> None:
    script, run = SCRIPTS / "sweep.sbatch", ["--vary", "seed=1,2", "--", "--data.store", tiny_store]
    found = told(script, "adapt", "--journal", tmp_path / "j", *run)
    assert found["problem"] == []
    assert any(line.startswith(f"--journal {tmp_path}/j: on a ") for line in found["ok"] + found["warning"])
    found = told(script, "adapt", "--journal", tmp_path / "no" / "j", *run)
    assert any(f"there is no folder {tmp_path}/no" in line for line in found["warning"])
    assert "no --journal: name the file that all workers share" in told(script, "adapt", *run)["problem"]


def test_the_server_that_nodes_must_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x")
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.mine.org")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    assert any("nodes must reach wandb.mine.org," in line for line in told(SCRIPT, "--wandb", "online")["warning"])


def test_limits_of_time() -> None:
    given = {"5": 300, "5:30": 330, "1:00:00": 3600, "2-0": 172800, "1-02:03:04": 93784}
    assert {text: seconds_of(text) for text in given} == given
    with pytest.raises(InputError, match="no time"):
        seconds_of("soon")
