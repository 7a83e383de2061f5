"""Stopped by a signal or killed at any moment, a run goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command
from ranks import Moment, Ranks, killed_during_imports, right_behind_the_last_save, seen, warm_server
from test_training import differing
from testing import QUIET, TINY
from wandb_records import server

from datamodules.sampling import BatchedRows
from foundation.slurm.job import Job
from foundation.stopping import asked_to_stop, held_signals, note
from foundation.tracking.sync import find_records, upload
from foundation.training.checkpoint_files import LAST, PREVIOUS, is_whole

PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step")
PARTS += ("current_model_state", "averaging_state", "exact_state")
EPOCHS, STEPS = 2, 12  # six batches an epoch
MEASURED = ("train/", "val/", "lr/", "gradient_norm", "frozen_share")  # all but clocks and memory
KILLS = int(os.environ.get("KILLS", "6"))


def words(store: Path, world: int = 1, *more: object) -> list[object]:
    """A pretraining run whose global batches do not depend on the number of processes."""
    properties = "formation_energy_per_atom,band_gap"
    run = ["pretrain", "--data.store", store, "--data.properties", properties, *TINY, *QUIET]
    run += ["--trainer.log_every_n_steps", 1]  # so that losses are told between epochs, too
    return [*run, "--data.batch_size", 8 // world, "--trainer.max_epochs", EPOCHS, *more]


def content(out: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(out / "run" / "checkpoints" / LAST, weights_only=True)
    return loaded


def assert_the_same(out: Path, whole: Path, world: int) -> None:
    """The same end, and every batch once and in order."""
    assert_the_same_end(out, whole)
    assert seen(out, world) == seen(whole, world)


def assert_the_same_end(out: Path, whole: Path) -> None:
    """Weights, averages, optimizer, random numbers and metrics bit for bit, in the same files."""
    one, two = content(whole), content(out)
    assert [place for part in PARTS for place in differing(one[part], two[part], part)] == []
    names = [sorted(path.name for path in (place / "run" / "checkpoints").iterdir()) for place in (whole, out)]
    assert names[0] == names[1]
    tables = [pd.read_csv(place / "run" / "metrics.csv") for place in (whole, out)]
    told = [name for name in tables[0].columns if not name.startswith(("speed/", "memory/"))]
    pd.testing.assert_frame_equal(tables[1][told], tables[0][told])


@pytest.fixture(scope="module", autouse=True)
def _server() -> Iterator[None]:
    with warm_server():
        yield


@pytest.fixture(scope="module")
def whole(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same runs in one and in two processes, never stopped."""
    out = {}
    for world in (1, 2):
        out[world] = tmp_path_factory.mktemp(f"whole{world}")
        run = Ranks([*words(tiny_store, world), "--out", out[world] / "run"], out[world], world)
        assert run.wait() == [0] * world, run.printed()
        assert all(len(lines) == STEPS for lines in seen(out[world], world))
    return out


CUTS = {
    "in the middle of an epoch": (1, [[Moment("train", 3)], [Moment("train", 2, signal.SIGTERM)]]),
    "behind a step's vote": (2, [[Moment("backward", 3, rank=1)], [Moment("backward", 2)]]),
    "during validation": (1, [[Moment("validate")]]),
    "at the last batch of an epoch": (1, [[Moment("train", 6)]]),
    "during a save": (1, [[Moment("save", 1)]]),
    "twice within a second": (1, [[Moment("train", 4, times=2), Moment("save", 1)]]),
    "on one of two processes": (2, [[Moment("train", 3, rank=1)], [Moment("validate", 1, rank=1)]]),
}


@pytest.mark.parametrize(("world", "starts"), CUTS.values(), ids=CUTS)
def test_a_signal(
    whole: dict[int, Path], tiny_store: Path, tmp_path: Path, world: int, starts: list[list[Moment]]
) -> None:
    command = [*words(tiny_store, world), "--out", tmp_path / "run", "--resume", "auto"]
    for moments in starts:
        run = Ranks(command, tmp_path, world, moments=moments)
        assert all(code in (138, 143) for code in run.wait()), run.printed()
        last = run.printed().splitlines()[-1]
        assert last.startswith("foundation: stopped at step ")
        assert last.endswith(f"go on with the same command and --resume {tmp_path}/run/checkpoints/last.ckpt")
    run = Ranks(command, tmp_path, world)
    assert run.wait() == [0] * world, run.printed()
    assert_the_same(tmp_path, whole[world], world)


def test_a_signal_after_the_last_step(whole: dict[int, Path], tiny_store: Path, tmp_path: Path) -> None:
    """The training is not done again, its evaluation is."""
    command = [*words(tiny_store, 2), "--out", tmp_path / "run", "--resume", "auto"]
    for moment, codes in (
        (Moment("calibrate", rank=1), [143, 138]),
        (Moment("evaluate"), [138, 0]),  # by the first process alone
        (Moment("evaluate", 2, signal.SIGTERM), [143, 0]),
    ):
        run = Ranks(command, tmp_path, 2, moments=[moment])
        assert run.wait() == codes, run.printed()
        assert run.printed().splitlines()[-1].startswith("foundation: stopped before it was evaluated by ")
        assert not (tmp_path / "run" / "metrics.json").exists()
    run = Ranks(command, tmp_path, 2)
    assert run.wait() == [0, 0], run.printed()
    assert_the_same(tmp_path, whole[2], 2)
    metrics = [json.loads((out / "run" / "metrics.json").read_text()) for out in (tmp_path, whole[2])]
    assert [metrics[0][part] for part in ("val", "test")] == [metrics[1][part] for part in ("val", "test")]


def test_what_is_done_to_the_weights_after_the_last_step_is_done_once(
    tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    adapt = ["adapt", "--pretrained", tiny_run, "--data.store", tiny_store, "--property", "shear_modulus", *QUIET]
    adapt += ["--strategy", "interpolate", "--optimization.learning_rate", 0.1, "--data.batch_size", 8]
    adapt += ["--trainer.max_epochs", EPOCHS, "--resume", "auto"]
    found = []
    cuts = [[Moment("evaluate", 2)], [Moment("evaluate", 2, signal.SIGKILL)], [], []]
    for name, starts in (("whole", [[]]), ("cut", cuts)):
        out = tmp_path / name
        codes = [Ranks([*adapt, "--out", out / "run"], out, moments=moments).wait() for moments in starts]
        assert codes == [[138], [-signal.SIGKILL], [0], [0]][-len(starts) :], (out / "rank0.txt").read_text()
        found.append(json.loads((out / "run" / "metrics.json").read_text())["interpolation"])
    assert found[0] == found[1]
    assert found[0]["share"] != 1, "nothing was done to the weights"
    one, two = content(tmp_path / "whole"), content(tmp_path / "cut")
    assert differing(one["state_dict"], two["state_dict"]) == []


ACCUMULATED = ["--trainer.accumulate_grad_batches", 2, "--data.temperature", 2, "--task_weights", "learned"]


def test_accumulated_gradients_are_not_cut_in_two(tiny_store: Path, tmp_path: Path) -> None:
    for name, moments in (("whole", []), ("cut", [Moment("train", 3)])):
        out = tmp_path / name
        command = [*words(tiny_store, 1, *ACCUMULATED), "--out", out / "run", "--resume", "auto"]
        codes = [Ranks(command, out, moments=moments).wait(), *([Ranks(command, out).wait()] if moments else [])]
        assert codes == ([[138], [0]] if moments else [[0]])
    assert "stopped at step 2 by SIGUSR1" in (tmp_path / "cut" / "rank0.txt").read_text()
    assert_the_same(tmp_path / "cut", tmp_path / "whole", 1)


def test_a_rehearsing_run(tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    adapt = ["adapt", "--pretrained", tiny_run, "--data.store", tiny_store, "--property", "shear_modulus", *QUIET]
    adapt += ["--strategy", "replay", "--strategy.init_args.store", tiny_store, "--data.batch_size", 8]
    adapt += ["--trainer.max_epochs", EPOCHS, "--resume", "auto"]
    for name, moments in (("whole", []), ("cut", [Moment("train", 4)])):
        out = tmp_path / name
        starts = [moments, []] if moments else [[]]
        codes = [Ranks([*adapt, "--out", out / "run"], out, moments=these).wait() for these in starts]
        assert codes[-1] == [0], (out / "rank0.txt").read_text()
    one, two = content(tmp_path / "whole"), content(tmp_path / "cut")
    assert [place for part in PARTS for place in differing(one[part], two[part], part)] == []
    assert seen(tmp_path / "cut") == seen(tmp_path / "whole")


SLURM = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1"}
JOBS = {
    "a job": ({}, "7"),
    "a task of an array": ({"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}, "7_3"),
}


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in that writes down how it is called; its file."""
    calls, tool = tmp_path / "calls.txt", tmp_path / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n[ "$1" = show ] && echo "JobId=7 JobState=$STATE Reason=None"\n')
    tool.write_text(tool.read_text() + "exit 0\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:{os.environ['PATH']}")
    return calls


@pytest.mark.parametrize(("variables", "job"), JOBS.values(), ids=JOBS)
def test_a_job_is_requeued_and_finds_its_run_by_itself(
    whole: dict[int, Path], tiny_store: Path, tmp_path: Path, scontrol: Path, variables: dict[str, str], job: str
) -> None:
    env = SLURM | variables | {"STATE": "RUNNING", "PATH": os.environ["PATH"]}
    command = [*words(tiny_store), "--out", tmp_path / "run", "--wandb", "offline"]
    for restarts, moments in ((0, [Moment("start", number=signal.SIGTERM)]), (1, [Moment("train", 3)]), (2, [])):
        run = Ranks(command, tmp_path, env=env | {"SLURM_RESTART_COUNT": str(restarts)}, moments=moments)
        assert run.wait() == [0], run.printed()
    assert scontrol.read_text().splitlines() == [f"show job -o {job}", f"requeue {job}"] * 2
    assert f"stopped before its first step by SIGTERM; having job {job} started again" in run.printed()
    assert_the_same(tmp_path, whole[1], 1)
    recorded = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len({path.name.split("-")[3] for path in recorded}) == 1


def test_who_is_cancelled_does_not_come_back(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for state in ("CANCELLED", "COMPLETING RunTime=00:00:59 TimeLimit=00:01:00", "COMPLETING TimeLimit=UNLIMITED"):
        monkeypatch.setenv("STATE", state)
        assert Job("7", 0).requeue() == "the job was cancelled"
    monkeypatch.setenv("STATE", "COMPLETING RunTime=1-00:00:03 TimeLimit=1-00:00:00")
    assert Job("7", 0).requeue() is None  # its time is over
    monkeypatch.setenv("STATE", "RUNNING")
    assert Job("7", 0).requeue() is None
    monkeypatch.setenv("PATH", "/nowhere")
    assert Job("7", 0).requeue() == "there is no scontrol on this node"


def at_any_moment(command: list[object], out: Path, draw: random.Random) -> None:
    """Of training and saving."""
    before = len(seen(out)[0])
    run = Ranks(command, out, env=SLOW)
    while run.running and len(seen(out)[0]) == before:
        time.sleep(0.01)
    time.sleep(draw.uniform(0, 0.3))
    run.signal(signal.SIGKILL)
    assert run.wait() == [-signal.SIGKILL], run.printed()


def during_a_save(command: list[object], out: Path, draw: random.Random) -> None:
    """With a part of a file written, beside what was saved before."""
    parts = draw.randrange(1, 150)  # of some 200
    run = Ranks(command, out, env=SLOW, moments=[Moment("record", parts, signal.SIGKILL)])
    assert run.wait() == [-signal.SIGKILL], run.printed()
    (torn,) = (out / "run" / "checkpoints").glob(".*.writing")
    assert not is_whole(torn)
    assert all(is_whole(file) for file in torn.parent.glob("*.ckpt"))


def during_the_imports(command: list[object], out: Path, draw: random.Random) -> None:
    before = files(out / "run")
    assert killed_during_imports(command) == -signal.SIGKILL
    assert files(out / "run") == before


def before_it_trains(command: list[object], out: Path, draw: random.Random) -> None:
    before = files(out / "run")
    run = Ranks(command, out, moments=[Moment("build", 1, signal.SIGKILL)])
    assert run.wait() == [-signal.SIGKILL], run.printed()
    assert files(out / "run") == before


def files(folder: Path) -> dict[Path, int]:
    """When each was written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


SLOW = {"STEP_SECONDS": "0.05"}
WAYS = (at_any_moment, during_a_save, during_the_imports, at_any_moment, during_a_save, before_it_trains)


def test_killed_at_any_moment(tiny_store: Path, tmp_path: Path) -> None:
    """Nothing is lost but what came after the last save: these batches are repeated, and none is left out."""
    longer = words(tiny_store, 1, "--trainer.max_epochs", max(EPOCHS, KILLS))
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert Ranks([*longer, "--out", whole / "run"], whole).wait() == [0]
    command = [*longer, "--save_every", "0.2s", "--out", cut / "run", "--resume", "auto"]
    draw, last = random.Random(0), cut / "run" / "checkpoints" / LAST
    for killed in islice(cycle(WAYS), KILLS):
        with right_behind_the_last_save(cut, whole, last):
            killed(command, cut, draw)
    with right_behind_the_last_save(cut, whole, last):
        assert Ranks(command, cut).wait() == [0]
    assert_the_same_end(cut, whole)


def test_one_of_two_processes_is_killed(whole: dict[int, Path], tiny_store: Path, tmp_path: Path) -> None:
    """The other one ends by itself, and both go on from the last save."""
    command = [*words(tiny_store, 2), "--out", tmp_path / "run", "--resume", "auto"]
    last = tmp_path / "run" / "checkpoints" / LAST
    for moment in (Moment("train", 9, signal.SIGKILL, rank=1), Moment("record", 50, signal.SIGKILL)):
        with right_behind_the_last_save(tmp_path, whole[2], last, 2):
            run = Ranks(command, tmp_path, 2, moments=[moment])
            codes = run.wait(60)
            assert codes.pop(moment.rank) == -signal.SIGKILL, run.printed()
            assert codes == [1]
            told = run.printed(1 - moment.rank).splitlines()[-1]
            assert told.startswith("foundation: stopped: lost another process of this run, see what it printed")
    assert torch.load(last, weights_only=True)["global_step"] == STEPS // EPOCHS
    with right_behind_the_last_save(tmp_path, whole[2], last, 2):
        assert Ranks(command, tmp_path, 2).wait() == [0, 0]
    assert_the_same_end(tmp_path, whole[2])


def test_steps_that_are_repeated_after_a_kill_are_recorded_with_the_same_values(
    tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights & Biases keeps both rows of a step, one upon the other in every plot, whose axis is the step."""
    command = [*words(tiny_store), "--wandb", "offline", "--out", tmp_path / "run", "--resume", "auto"]
    killed = Ranks(command, tmp_path, env={"STEP_SECONDS": "0.25"}, moments=[Moment("train", 12, signal.SIGKILL)])
    assert killed.wait() == [-signal.SIGKILL], killed.printed()
    again = Ranks(command, tmp_path)
    assert again.wait() == [0], again.printed()
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    with server() as there:
        monkeypatch.setenv("WANDB_BASE_URL", there.url)
        records, _ = find_records([str(tmp_path)])
        assert [upload(record) for record in records] == [None, None]
    configs = [run["config"] for run in there.variables("UpsertBucket") if run.get("config")]
    step, others = json.loads(configs[-1])["_wandb"]["value"]["m"]
    assert (step["1"], others["2"], others["5"]) == ("trainer/global_step", "*", 1)  # "5": over the first of these
    (rows,) = there.history.values()
    assert [row["_step"] for row in rows] == list(range(len(rows))), "one start overwrote the other"
    values: dict[tuple[int, str], list[float]] = {}
    for row in rows:
        for name, value in row.items():
            if name.startswith(MEASURED):
                values.setdefault((row["trainer/global_step"], name), []).append(value)
    repeated = {step for (step, name), found in values.items() if len(found) > 1}
    assert 6 in repeated, "nothing was recorded between the checkpoint and the kill"
    assert [place for place, found in values.items() if len(set(found)) > 1] == []
    table = pd.read_csv(tmp_path / "run" / "metrics.csv").groupby("step").first()
    expected = table[[name for name in table if name.startswith(MEASURED)]].stack().dropna().to_dict()
    assert {place: found[0] for place, found in values.items()} == pytest.approx(expected)


def test_a_torn_checkpoint_is_passed_over(foundation: Command, tiny_store: Path, tmp_path: Path) -> None:
    command = [*words(tiny_store), "--out", tmp_path / "run"]
    assert foundation(*command).code == 0
    last, previous = (tmp_path / "run" / "checkpoints" / name for name in (LAST, PREVIOUS))
    expected = content(tmp_path)
    assert torch.load(previous, weights_only=True)["epoch"] == EPOCHS - 2
    torn = bytearray(last.read_bytes())
    weight = expected["state_dict"]["encoder.embedding.own.weight"]
    torn[torn.index(weight.numpy().tobytes())] ^= 1  # a single bit of a weight, which reading alone need not notice
    last.write_bytes(torn)
    answer = foundation(*command, "--resume", "auto")
    assert answer.code == 0, answer.err
    assert f"torn, its checksums do not fit; going on from the one before it, {previous}" in answer.err
    assert differing(content(tmp_path)["state_dict"], expected["state_dict"]) == []
    last.write_bytes(torn[:-100])
    previous.unlink()
    answer = foundation(*command, "--resume", "auto")
    assert answer.code == 2
    assert "torn" in answer.err


def test_signals_wait_while_they_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    before = signal.getsignal(signal.SIGTERM)
    with held_signals():
        assert asked_to_stop() is None
        signal.raise_signal(signal.SIGTERM)  # by default the end of this process
        assert asked_to_stop() == signal.SIGTERM
        note(signal.SIGTERM)
        assert asked_to_stop() == signal.SIGTERM
    with held_signals():
        assert asked_to_stop() is None
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_epoch_begins_behind_what_was_seen() -> None:
    sampler = BatchedRows(np.arange(20), 4, shuffle=True, seed=1)
    sampler.set_epoch(3)
    every = [batch.tolist() for batch in sampler]
    sampler.go_to(3, 2)
    assert [batch.tolist() for batch in sampler] == every[2:]
    assert len(sampler) == 5
    sampler.set_epoch(4)
    assert len(list(sampler)) == 5


def test_a_loss_that_is_not_finite_on_one_process_stops_all(tiny_store: Path, tmp_path: Path) -> None:
    run = Ranks([*words(tiny_store, 2), "--out", tmp_path / "run"], tmp_path, 2, env={"NAN_ON": "1"})
    assert run.wait(60) == [1, 1]
    last = run.printed().splitlines()[-1]
    assert last.startswith("foundation: stopped: the loss of ")
    assert "is not finite at step 1" in last
