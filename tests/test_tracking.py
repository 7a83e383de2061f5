"""Weights & Biases: what a run records is read back, ties to what it came from, and never stops a training."""

from __future__ import annotations

import errno
import gc
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import wandb
import yaml
from conftest import Command
from testing import QUIET, TINY
from wandb_records import Server, entries, record_of, server, summary

from foundation.checkpoint import load_checkpoint
from foundation.tracking import logger, uploading
from foundation.tracking.artifacts import model_artifact
from foundation.tracking.facts import git_state
from foundation.tracking.guard import Guard
from foundation.tracking.identity import FILE, group_of, model_name, run_id, run_name
from foundation.tracking.logger import Tracker, wandb_logger
from foundation.tracking.server import UNSENT, default_mode, has_key
from foundation.tracking.sync import find_records
from foundation.training.preemption import Leaving

PRETRAINED = ("formation_energy_per_atom", "band_gap")
NO_SPACE = OSError(errno.ENOSPC, "No space left on device")
OFFLINE = ["--wandb", "offline", "--trainer.log_every_n_steps", "2"]


@pytest.fixture(scope="module")
def runs(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pretraining run ``pre`` and a run ``ada`` that adapts it, recorded offline by the commands."""
    from foundation.cli import main

    folder = tmp_path_factory.mktemp("tracked")
    common: list[object] = ["--data.store", tiny_store, *QUIET, *OFFLINE, "--trainer.max_epochs", 2]
    pretrain = ["pretrain", "--data.properties", ",".join(PRETRAINED), *TINY, "--out", folder / "pre"]
    adapt = ["adapt", "--pretrained", folder / "pre", "--property", "shear_modulus", "--strategy", "last_blocks"]
    for words in ([*pretrain, *common], [*adapt, *common, "--out", folder / "ada"]):
        assert main([str(word) for word in words]) == 0
    return folder


def last_card(run: Path) -> dict[str, Any]:
    return load_checkpoint(run / "checkpoints" / "last.ckpt").card


def test_a_run_is_recorded_whole(runs: Path, tiny_store: Path) -> None:
    found = summary(record_of(runs / "pre"))
    assert (found["state"], found["exit_code"], found["project"]) == ("finished", 0, "foundation")
    last = found["summary"]
    for name in PRETRAINED:
        expected = {f"train/{name}/{key}" for key in ("loss", "weight", "gradient_norm")}
        expected |= {f"val/{name}/{key}" for key in ("loss", "mae", "rmse", "r2")}
        expected |= {f"final/{part}/{name}/mae" for part in ("val", "test")} | {f"errors/{name}"}
        assert expected <= last.keys()
    parts = ("embedding", "blocks.0.edge", "blocks.0.node", "blocks.1.edge", "blocks.1.node", "readout", "heads")
    assert {f"lr/{part}" for part in parts} <= last.keys()
    assert {"gradient_norm", "frozen_share", "speed/crystals_per_second", "speed/data_wait"} <= last.keys()
    assert {"memory/peak_GiB", "plots/parity", "plots/learning_curves"} <= last.keys()
    metrics = json.loads((runs / "pre" / "metrics.json").read_text())
    assert last["final/test/band_gap/mae"] == pytest.approx(metrics["test"]["band_gap"]["mae"])
    losses = [entry["item"] for entry in entries(record_of(runs / "pre"), "history") if "val/loss" in entry["item"]]
    assert [loss["epoch"] for loss in losses] == [0, 1]


def test_the_record_says_what_the_run_stands_on(runs: Path, tiny_store: Path) -> None:
    config = summary(record_of(runs / "pre"))["config"]
    written = yaml.safe_load((runs / "pre" / "config.yaml").read_text())
    assert written.items() <= config.items()
    manifest = json.loads((tiny_store / "manifest.json").read_text())
    assert config["store"]["content_hash"] == manifest["content_hash"]
    assert config["store"]["counts"] == {"crystals": 60}
    assert config["store"]["units"]["band_gap"] == "eV"
    assert set(config["git"]) == {"program", "folder"}
    assert config["run"] == last_card(runs / "pre")["run"]
    assert summary(record_of(runs / "ada"))["config"]["model"]["frozen"] == [
        "embedding",
        "blocks.0.edge",
        "blocks.0.node",
    ]
    (environment, *_) = entries(record_of(runs / "pre"), "environment")
    assert "git" not in environment
    assert not list(record_of(runs / "pre").rglob("*.patch"))


def test_frozen_parts_show_rate_zero(runs: Path) -> None:
    last = summary(record_of(runs / "ada"))["summary"]
    assert (last["lr/embedding"], last["lr/blocks.0.node"]) == (0, 0)
    assert last["lr/readout"] == last["lr/heads"] > 0
    assert 0 < last["frozen_share"] < 1


def test_tables_hold_the_largest_errors(runs: Path) -> None:
    (file,) = record_of(runs / "ada").rglob("shear_modulus*.table.json")
    table = json.loads(file.read_text())
    assert table["columns"] == ["unit", "part", "id", "formula", "target", "prediction", "error"]
    errors = [abs(row[-1]) for row in table["data"]]
    assert errors == sorted(errors, reverse=True)
    metrics = json.loads((runs / "ada" / "metrics.json").read_text())["test"]["shear_modulus"]
    assert len(errors) == metrics["count"]
    assert sum(errors) / len(errors) == pytest.approx(metrics["mae"], rel=1e-5)


def test_lineage_goes_from_the_store_over_the_pretrained_model_to_the_adapted_one(runs: Path, tiny_store: Path) -> None:
    def artifacts(run: str, used: bool) -> dict[str, str]:
        found = entries(record_of(runs / run), "artifact")
        return {
            entry["name"]: entry["digest"]
            for entry in found
            if entry["type"] != "run_table" and bool(entry.get("use_after_commit")) == used
        }

    pre, ada = last_card(runs / "pre")["run"], last_card(runs / "ada")["run"]
    assert artifacts("pre", used=True).keys() == {f"store-{tiny_store.name}"}
    assert artifacts("pre", used=False).keys() == {f"pre-{pre['id']}"}
    assert artifacts("ada", used=True) == artifacts("pre", used=True) | artifacts("pre", used=False)
    assert artifacts("ada", used=False).keys() == {f"ada-{ada['id']}"}
    copied = [
        file["local_path"]
        for run in ("pre", "ada")
        for entry in entries(record_of(runs / run), "artifact")
        for file in entry["manifest"]["contents"]
    ]
    assert all(Path(path).is_relative_to(runs) and Path(path).is_file() for path in copied)


def test_a_model_is_the_same_artifact_from_either_form(runs: Path, tmp_path: Path) -> None:
    forms = [runs / "pre" / "checkpoints" / "last.ckpt", runs / "pre" / "model"]
    one, two = (model_artifact(load_checkpoint(form), tmp_path / form.name) for form in forms)
    assert (one.name, one.digest) == (two.name, two.digest)


def test_an_adaptation_is_in_the_group_of_its_pretraining(runs: Path) -> None:
    (pre,), (ada,) = (entries(record_of(runs / name), "run") for name in ("pre", "ada"))
    assert pre["run_group"] == ada["run_group"] == f"pre-{pre['run_id']}"
    assert (pre["job_type"], ada["job_type"]) == ("train", "adapt")
    assert last_card(runs / "ada")["run"] == {"id": ada["run_id"], "name": "ada", "group": ada["run_group"]}


def test_checkpoints_that_do_not_tell_their_run_are_grouped_by_their_place(
    foundation: Command, tiny_store: Path, tmp_path: Path
) -> None:
    assert model_name(Path("runs/mine/checkpoints/last.ckpt")) == "mine"
    assert model_name(Path("runs/mine/seed3/checkpoints/last.ckpt")) == "mine-seed3"
    assert model_name(Path("runs/mine/model")) == "mine"
    assert group_of({"path": "pretrained/mp-small"}) == "mp-small"
    assert group_of({"path": "x", "run": None}) == "x"
    words = ["adapt", "--pretrained", "mp-small", "--data.store", tiny_store, "--property", "shear_modulus"]
    words += ["--strategy", "linear_probe", *QUIET, *OFFLINE, "--trainer.max_epochs", 1, "--out", tmp_path / "run"]
    assert foundation(*words).code == 0
    assert last_card(tmp_path / "run")["run"]["group"] == "mp-small"
    used = [entry["name"] for entry in entries(record_of(tmp_path / "run"), "artifact") if "use_after_commit" in entry]
    assert used == [f"store-{tiny_store.name}", "mp-small"]


def test_a_resumed_run_keeps_its_id_and_a_fresh_one_gets_another(
    foundation: Command, tiny_store: Path, tmp_path: Path
) -> None:
    state = torch.get_rng_state()
    ids = [run_id(tmp_path / name) for name in ("one", "one", "two")]
    assert torch.equal(torch.get_rng_state(), state)
    assert ids[0] == ids[1] != ids[2]
    assert ids[2] == (tmp_path / "two" / FILE).read_text().strip()
    assert run_name(tmp_path / "mine" / "seed1") == "mine-seed1"
    words = ["pretrain", "--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET, *OFFLINE]
    words += ["--out", tmp_path / "run"]
    assert foundation(*words, "--trainer.max_epochs", 1).code == 0
    kept = (tmp_path / "run" / FILE).read_text()
    more = ["--resume", tmp_path / "run" / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 2]
    assert foundation(*words, *more).code == 0
    records = list((tmp_path / "run" / "wandb").glob("offline-run-*"))
    # offline-run-TIME-ID, and -1 behind it where two begin in one second
    assert [record.name.split("-")[3] for record in records] == [kept.strip()] * 2
    assert foundation(*words, "--trainer.max_epochs", 1, "--overwrite", "true").code == 0
    assert (tmp_path / "run" / FILE).read_text() != kept


def test_a_run_that_judges_on_nothing_still_records_its_model(
    foundation: Command, tiny_store: Path, tmp_path: Path
) -> None:
    words = ["pretrain", "--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET, *OFFLINE]
    words += ["--data.val_share", 0, "--data.test_share", 0, "--trainer.max_epochs", 1, "--out", tmp_path / "run"]
    answer = foundation(*words)
    assert answer.code == 0, answer.err
    assert "fails" not in answer.err
    assert [entry["type"] for entry in entries(record_of(tmp_path / "run"), "artifact")] == ["dataset", "model"]


@pytest.mark.parametrize("several", ["--folds", "--seeds"])
def test_members_record_their_ensemble_and_what_it_holds_of_them(
    foundation: Command, tiny_store: Path, runs: Path, tmp_path: Path, several: str
) -> None:
    """Folds rewrite the checkpoints of their members: an adaptation from one is tied to the version it reads."""
    words = ["adapt", "--pretrained", runs / "pre", "--data.store", tiny_store, "--property", "shear_modulus", *QUIET]
    words += [*OFFLINE, "--strategy", "linear_probe", "--trainer.max_epochs", 1, several, 2, "--out", tmp_path / "run"]
    answer = foundation(*words)
    assert answer.code == 0, answer.err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]["shear_modulus"]
    for member in (0, 1):
        folder = tmp_path / "run" / f"{several[2:-1]}{member}"
        first, last = sorted(folder.glob("wandb/offline-run-*"), key=lambda record: record.stat().st_ctime_ns)
        found = summary(last)
        assert found["summary"]["ensemble/test/shear_modulus/mae"] == pytest.approx(metrics["mae"])
        assert "plots/ensemble_parity" in found["summary"]
        assert found["config"] == summary(first)["config"] | {"model": found["config"]["model"]}
        made = model_artifact(load_checkpoint(folder / "checkpoints" / "last.ckpt"), tmp_path / "again")
        versions = [
            [entry["digest"] for entry in entries(record, "artifact") if entry["type"] == "model"][-1]
            for record in (first, last)
        ]
        assert versions[1] == made.digest
        assert (versions[0] == made.digest) == (several == "--seeds")


def failing_log(monkeypatch: pytest.MonkeyPatch) -> None:
    def log(*_: Any, **__: Any) -> None:
        raise NO_SPACE

    monkeypatch.setattr(wandb.Run, "log", log)


def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B's own process meets the full disk and tells nobody."""

    def probe(_: Guard) -> None:
        raise NO_SPACE

    monkeypatch.setattr(Guard, "probe", probe)


def no_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: Any) -> None:
        raise wandb.errors.UsageError("cannot begin\nmore")

    monkeypatch.setattr(wandb, "init", init)


@pytest.mark.parametrize("breaks", [failing_log, full_disk, no_beginning])
def test_training_goes_on_where_recording_fails_and_says_so_once(
    foundation: Command,
    tiny_store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[pytest.MonkeyPatch], None],
) -> None:
    breaks(monkeypatch)
    words = ["pretrain", "--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET, *OFFLINE]
    answer = foundation(*words, "--trainer.max_epochs", 2, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    told = [line for line in answer.err.splitlines() if "warning" in line]
    assert [line.startswith("warning: Weights & Biases fails (") for line in told] == [True], answer.err
    assert "training goes on without it" in told[0]
    assert (tmp_path / "run" / "metrics.json").is_file()
    assert wandb.run is None


def test_a_metrics_file_that_cannot_be_written_does_not_stop_the_training(
    foundation: Command, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(_: Any) -> None:
        raise NO_SPACE

    monkeypatch.setattr("lightning.fabric.loggers.csv_logs._ExperimentWriter.save", save)
    words = ["pretrain", "--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET]
    answer = foundation(*words, "--trainer.max_epochs", 2, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert answer.err.count("warning: writing metrics.csv fails") == 1


@pytest.mark.parametrize("error", [NO_SPACE, wandb.errors.CommError("gone"), RuntimeError()])
def test_a_guard_says_once_what_is_wrong(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        raise error

    guard = Guard("it")
    assert guard.attempt(int, "3") == 3
    for _ in range(3):
        assert guard.attempt(fail) is None
    assert guard.attempt(int, "3") is None
    assert capsys.readouterr().err.count("warning: it fails (") == 1

    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guard("it").attempt(interrupt)


def test_a_guard_notices_a_folder_that_takes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = Guard("it", tmp_path / "gone")
    assert guard.attempt(int, "3") is None
    assert "warning: it fails" in capsys.readouterr().err


def test_the_death_of_its_own_process_is_survived(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = wandb_logger("offline", tmp_path / "one", "g", {}, run_id="one")
    assert first is not None
    ours = [it for it in gc.get_objects() if type(it) is subprocess.Popen and "wandb" in str(it.args)]
    for process in ours:
        process.kill()
        process.wait()  # W&B would not, and Python warns of that whenever it clears up
    for step in range(50):
        first.log_metrics({"loss": 1.0}, step)
    first.finish()
    assert capsys.readouterr().err.count("warning: Weights & Biases fails (") == 1
    second = wandb_logger("offline", tmp_path / "two", "g", {}, run_id="two")
    assert second is not None
    second.log_metrics({"loss": 0.5}, 0)
    second.finish()
    assert summary(record_of(tmp_path / "two"))["summary"]["loss"] == 0.5


@pytest.mark.parametrize(("error", "code"), [(ZeroDivisionError, 1), (Leaving, 0)])
def test_a_run_that_fails_is_recorded_as_failed(tmp_path: Path, error: type[Exception], code: int) -> None:
    tracker = wandb_logger("offline", tmp_path, "g", {}, run_id="a")
    assert tracker is not None
    with pytest.raises(error), tracker.failing(unless=Leaving):
        raise error
    assert wandb.run is None
    assert summary(record_of(tmp_path))["exit_code"] == code


def test_a_server_that_does_not_answer_means_offline_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    tracker = wandb_logger("online", tmp_path, "g", {}, run_id="a")
    assert tracker is not None
    tracker.finish()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Weights & Biases: 127.0.0.1:1 does not answer (Connection refused); recording offline")
    assert f"`foundation wandb sync {tmp_path}`" in line
    assert record_of(tmp_path).is_dir()


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server, W&B set up to talk to it every second, and no patience with it."""
    with server() as there:
        monkeypatch.setenv("WANDB_BASE_URL", there.url)
        monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("WANDB__FILE_STREAM_TRANSMIT_INTERVAL", "1")
        monkeypatch.setattr(uploading, "_LOOK_SECONDS", 0.0)
        monkeypatch.setattr(uploading, "_PATIENCE_SECONDS", 1.5)
        monkeypatch.setattr(logger, "_FINISH_SECONDS", 1)
        wandb.teardown()  # it reads the environment once
        yield there
    wandb.teardown()


def log_until(tracker: Tracker, happens: Callable[[], bool], step: int = 0) -> int:
    """Log a row every tenth of a second; returns the next step."""
    until = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < until
        tracker.log_metrics({"loss": 1.0}, step)
        step += 1
        time.sleep(0.1)
    return step


def test_a_server_that_is_lost_is_told_once_and_soon(
    online: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tracker = wandb_logger("online", tmp_path, "g", {}, run_id="a")
    assert tracker is not None
    step = log_until(tracker, lambda: bool(online.history.get("a")))
    assert capsys.readouterr().err == ""
    online.stop()
    told = ""

    def is_told() -> bool:
        nonlocal told
        told += capsys.readouterr().err
        return bool(told)

    step = log_until(tracker, is_told, step)
    start, end = "Weights & Biases has taken nothing for ", f"`foundation wandb sync {tmp_path}` uploads it later\n"
    assert told.startswith(start), told
    assert told.endswith(f" s (connection refused); training goes on and is recorded here; {end}"), told
    # Even from a run that is killed from here on.
    assert find_records([str(tmp_path)])[0] == [tracker.place / "run-a.wandb"]
    tracker.log_metrics({"loss": 0.5}, step)
    tracker.finish()
    assert capsys.readouterr().err == ""
    assert find_records([str(tmp_path)])[0] == [tracker.place / "run-a.wandb"]
    assert [row["item"]["trainer/global_step"] for row in entries(tracker.place, "history")] == list(range(step + 1))


def test_a_server_that_comes_back_gets_all(online: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracker = wandb_logger("online", tmp_path, "g", {}, run_id="a")
    assert tracker is not None
    online.refuses = 503
    step = log_until(tracker, (tracker.place / UNSENT).exists)
    assert "(HTTP 503); training goes on" in capsys.readouterr().err
    online.refuses = None
    step = log_until(tracker, lambda: bool(online.history.get("a")), step)
    tracker.finish()
    assert capsys.readouterr().err == "Weights & Biases: all is uploaded after all\n"
    assert [row["trainer/global_step"] for row in online.history["a"]] == list(range(step))
    assert not (tracker.place / UNSENT).exists()


@pytest.mark.parametrize("soon", [True, False])
def test_a_server_that_refuses_is_told_once(
    online: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], soon: bool
) -> None:
    """W&B gives up at once and for good, and finishes as if all were well."""
    tracker = wandb_logger("online", tmp_path, "g", {}, run_id="a")
    assert tracker is not None
    online.refuses = 404
    if soon:
        log_until(tracker, (tracker.place / UNSENT).exists)
        assert "training goes on" in capsys.readouterr().err
        online.refuses = None
    else:
        tracker.run.log({"loss": 1.0})
    tracker.finish()
    (*_, last) = ["", *capsys.readouterr().err.splitlines()]
    assert ("refuses what is recorded (404 Not Found); `foundation wandb sync" in last) != soon, last
    assert (tracker.place / UNSENT).exists()


def test_a_run_that_cannot_begin_online_is_recorded_offline(
    online: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(online, "answer", lambda *_: {"model": 3, "upsertBucket": 3})
    tracker = wandb_logger("online", tmp_path, "g", {}, run_id="a")
    assert tracker is not None, capsys.readouterr().err
    tracker.finish()
    (line,) = capsys.readouterr().err.splitlines()
    assert f"; recording offline, `foundation wandb sync {tmp_path}` uploads it later" in line
    assert record_of(tmp_path).is_dir()


def test_only_the_first_process_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert wandb_logger("offline", tmp_path, None, {}) is None
    assert wandb_logger("off", tmp_path, None, {}) is None
    assert list(tmp_path.iterdir()) == []


def test_the_mode_follows_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"):
        monkeypatch.delenv(name, raising=False)
    assert not has_key()
    (tmp_path / "netrc").write_text("machine other.example.org login user password x\n")
    assert not has_key()
    (tmp_path / "netrc").write_text("machine wandb.example.org login user password x\n")
    assert has_key()
    for given, expected in (("disabled", "off"), ("offline", "offline"), ("online", "online"), ("", "online")):
        monkeypatch.setenv("WANDB_MODE", given)
        assert default_mode() == expected
    (tmp_path / "netrc").unlink()
    assert default_mode() == "offline"


def test_git_state_is_the_commit_and_whether_files_differ(tmp_path: Path) -> None:
    def git(*words: str) -> None:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, "-C", str(tmp_path), *words], check=True, capture_output=True)

    assert git_state(tmp_path / "nowhere") is None
    git("init")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-m", "first")
    (tmp_path / "untracked").write_text("secret")
    clean = git_state(tmp_path)
    assert clean is not None
    assert (len(clean["commit"]), clean["dirty"]) == (40, False)
    (tmp_path / "file").write_text("2")
    assert git_state(tmp_path) == {**clean, "dirty": True}
