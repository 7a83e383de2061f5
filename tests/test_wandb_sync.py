"""`foundation wandb sync`: offline records reach a server once, lineage included, and mistakes are told in a line."""

from __future__ import annotations

from pathlib import Path

import pytest
import wandb
from conftest import Command
from wandb_records import server

from foundation.tracking.logger import wandb_logger
from foundation.tracking.server import UNSENT
from foundation.tracking.sync import find_records


@pytest.fixture
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)


def record(folder: Path, name: str) -> Path:
    """A small offline record, with an artifact that it makes or uses."""
    tracker = wandb_logger("offline", folder / name, "group", {"learning_rate": 0.1}, run_id=name)
    assert tracker is not None
    tracker.log_metrics({"val/loss": 0.5}, 0)
    (folder / "card.json").write_text("{}")

    def artifact() -> None:
        made = wandb.Artifact("pre-one", type="model")
        made.add_file(str(folder / "card.json"))
        tracker.run._log_artifact(made, use_after_commit=name != "one")

    tracker.record(artifact)
    tracker.finish()
    wandb.teardown()  # waits until its process has written everything
    assert not tracker.guard.broken
    return tracker.place


@pytest.mark.usefixtures("key")
def test_records_are_uploaded_once_and_in_order(
    foundation: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = record(tmp_path / "runs", "one"), record(tmp_path / "runs", "two")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with server() as there:
        monkeypatch.setenv("WANDB_BASE_URL", there.url)
        answer = foundation("wandb", "sync", tmp_path / "runs")
        assert (answer.code, answer.out) == (0, "uploaded 2 of 2 records\n"), answer.err
        assert answer.err.splitlines() == [f"1 of 2: uploaded {first}", f"2 of 2: uploaded {second}"]
        runs = list(dict.fromkeys(run["name"] for run in there.variables("UpsertBucket")))
        assert runs == ["one", "two"]
        assert {run["groupName"] for run in there.variables("UpsertBucket")} >= {"group"}
        # Made once, and used by the other run: the same content is the same version.
        assert list(there.artifacts) == [("pre-one", there.variables("CreateArtifact")[0]["digest"])]
        (used,) = there.variables("UseArtifact")
        assert (used["artifactID"], used["runName"]) == ("A0", "two")
        assert list((tmp_path / "here").iterdir()) == []
        assert {"card.json", "config.yaml", "wandb-summary.json"} <= set(there.files)
        there.asked.clear()
        again = foundation("wandb", "sync", tmp_path / "runs" / "one", second)
        assert (again.code, again.out, there.asked) == (0, "uploaded 0 of 0 records, 2 before\n", [])


@pytest.mark.usefixtures("key")
def test_a_record_that_fails_is_named_and_the_others_go_on(
    foundation: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torn = tmp_path / "offline-run-20200101_000000-torn" / "run-torn.wandb"
    torn.parent.mkdir()
    torn.write_bytes(b"nothing of W&B's")
    record(tmp_path, "one")
    with server() as there:
        monkeypatch.setenv("WANDB_BASE_URL", there.url)
        answer = foundation("wandb", "sync", tmp_path)
    assert (answer.code, answer.out) == (1, "uploaded 1 of 2 records\n"), answer.err
    assert answer.err.splitlines()[0].startswith("1 of 2: error: ")
    assert str(torn.parent) in answer.err.splitlines()[0]


def test_mistakes_are_told_in_one_line(foundation: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*words: object) -> str:
        answer = foundation("wandb", "sync", *words)
        assert (answer.code, answer.out, answer.err.count("\n")) == (2, "", 1), answer.err
        return answer.err

    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:1")
    assert "nowhere: no such folder" in refused(tmp_path / "nowhere")
    assert "no run there was recorded offline" in refused(tmp_path)
    waiting = tmp_path / "wandb" / "offline-run-20260101_000000-a" / "run-a.wandb"
    waiting.parent.mkdir(parents=True)
    waiting.write_bytes(bytes(8))
    assert "run `wandb login`, or set WANDB_API_KEY" in refused(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    assert "127.0.0.1:1 does not answer (Connection refused); nothing was uploaded" in refused(tmp_path)
    assert "DIR" in refused()


def test_online_runs_are_taken_up_only_where_they_were_cut_off(tmp_path: Path) -> None:
    for name in ("offline-run-20260102_000000-b", "run-20260101_000000-a", "run-20260101_000000-c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"run-{name[-1]}.wandb").write_bytes(bytes(8))
    (tmp_path / "run-20260101_000000-a" / UNSENT).touch()
    waiting, uploaded = find_records([str(tmp_path)])
    assert ([file.name for file in waiting], uploaded) == (["run-a.wandb", "run-b.wandb"], [])
    (tmp_path / "offline-run-20260102_000000-b" / "run-b.wandb.synced").touch()
    waiting, uploaded = find_records([str(tmp_path), str(tmp_path)])
    assert [[file.name for file in found] for found in (waiting, uploaded)] == [["run-a.wandb"], ["run-b.wandb"]]


@pytest.mark.parametrize("size", [0, 7])
def test_a_record_of_a_run_that_was_killed_at_once_is_passed_over(tmp_path: Path, size: int) -> None:
    for name in ("one", "two"):
        record(tmp_path, name)
    (begun,) = (tmp_path / "one").rglob("run-*.wandb")
    assert begun.read_bytes()[:4] == b":W&B"
    begun.write_bytes(begun.read_bytes()[:size])
    (waiting,), _ = find_records([str(tmp_path)])
    assert "two" in waiting.name
