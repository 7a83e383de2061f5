"""Mistakes of the person at the terminal: exit code 2, one line that names the culprit, nothing written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Command
from testing import QUIET

from foundation.checkpoint import find_members

Words = list[object]


class Places:
    """Where things are, and what must not change."""

    def __init__(self, folder: Path, store: Path, run: Path) -> None:
        self.folder, self.store, self.run = folder, store, run
        self.checkpoint = find_members(str(run))[0]

    def pretrain(self, *more: object) -> Words:
        words: Words = ["pretrain", "--data.store", self.store, "--data.properties", "band_gap", *QUIET]
        return [*words, "--out", self.folder / "run", *more]

    def adapt(self, *more: object, pretrained: object = None) -> Words:
        words: Words = ["adapt", "--data.store", self.store, "--pretrained", pretrained or self.run, *QUIET]
        return [*words, "--property", "shear_modulus", "--strategy", "full", "--out", self.folder / "run", *more]

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    def saved(self, name: str, content: Any) -> Path:
        path = self.folder / name
        torch.save(content, path)
        return path


@pytest.fixture
def places(tmp_path: Path, tiny_store: Path, tiny_run: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.chdir(tmp_path)
    return Places(tmp_path, tiny_store, tiny_run)


def assert_refused(foundation: Command, places: Places, words: Words, *culprits: str) -> None:
    before = {path: path.stat().st_mtime_ns for path in places.folder.rglob("*")}
    answer = foundation(*words)
    assert answer.code == 2, f"exit code {answer.code}: {answer.err}"
    assert answer.err.count("\n") == 1, f"more than one line: {answer.err}"
    assert answer.err.startswith("foundation: error: ")
    assert [culprit for culprit in culprits if culprit not in answer.err] == [], answer.err
    assert {path: path.stat().st_mtime_ns for path in places.folder.rglob("*")} == before


Case = Callable[[Places], Words]
MISTAKES: dict[str, tuple[Case, str]] = {
    "override": (lambda p: p.pretrain("--trainer.max_epoch", 2), "max_epoch"),
    "override with =": (lambda p: p.pretrain("--optimisation.learning_rate=1"), "optimisation.learning_rate"),
    "value of another type": (lambda p: p.pretrain("--trainer.max_epochs", "many"), "max_epochs"),
    "choice": (lambda p: p.pretrain("--optimization.schedule", "linear"), "schedule"),
    "yaml key": (lambda p: p.pretrain("--config", p.file("a.yaml", "optimization: {leaning_rate: 1}")), "leaning_rate"),
    "yaml syntax": (lambda p: p.pretrain("--config", p.file("a.yaml", "optimization: {a: [")), "a.yaml"),
    "no such yaml": (lambda p: p.pretrain("--config", "nowhere.yaml"), "nowhere.yaml"),
    "no such store": (lambda p: p.pretrain("--data.store", "nowhere"), "nowhere"),
    "no store given": (lambda p: ["pretrain", "--out", p.folder / "run"], "store"),
    "a folder that is no store": (lambda p: p.pretrain("--data.store", p.run), "tiny"),
    "an id in both lists": (
        lambda p: p.pretrain("--data.splits", p.file("ids.json", '{"test": ["c1"], "trial1": {"2": ["c0", "c1"]}}')),
        "'c1'",
    ),
    "no such lists": (lambda p: p.pretrain("--data.splits", "nowhere.json"), "nowhere.json"),
    "nothing to exclude": (lambda p: p.pretrain("--data.exclude", "nowhere.json"), "nowhere.json"),
    "unknown property": (lambda p: p.pretrain("--data.properties", "band_gap,bandgap"), "bandgap"),
    "too many crystals": (lambda p: p.pretrain("--train-size", 1000), "1000"),
    "tracking": (lambda p: p.pretrain("--wandb", "on"), "--wandb on"),
    "irreps": (lambda p: p.pretrain("--encoder.irreps", "8x0e+4x1e"), "8x0e+4x1e"),
    "head that is none": (lambda p: p.pretrain("--heads", '{"band_gap": {"class_path": "heads.NoHead"}}'), "NoHead"),
    "argument of a head": (
        lambda p: p.pretrain("--heads", '{"band_gap": {"class_path": "heads.ScalarHead", "init_args": {"lok": true}}}'),
        "lok",
    ),
    "task weight": (lambda p: p.pretrain("--task_weights", '{"bandgap": 2.0}'), "bandgap"),
    "task weights": (lambda p: p.pretrain("--task_weights", "lerned"), "lerned"),
    "nothing to resume": (lambda p: p.pretrain("--resume", "nowhere.ckpt"), "nowhere.ckpt"),
    "property to adapt to": (lambda p: p.adapt("--property", "sheer_modulus"), "sheer_modulus"),
    "no such strategy": (lambda p: p.adapt("--strategy", "fool"), "fool"),
    "no such checkpoint": (lambda p: p.adapt(pretrained="nowhere.ckpt"), "nowhere.ckpt"),
    "one model and several": (lambda p: p.adapt("--resume", p.checkpoint, "--seeds", 2), "--resume"),
    "another architecture": (lambda p: p.pretrain("--resume", p.checkpoint), "another encoder"),
    "a pattern that matches nothing": (lambda p: p.adapt("--unfreeze", "blocks.7.*,readout"), "'blocks.7.*'"),
    "another encoder than the checkpoint's": (
        lambda p: p.adapt("--encoder.num_blocks", 5),
        "encoder.num_blocks 5: the",
    ),
    "too many blocks": (lambda p: p.adapt("--strategy", "last_blocks", "--strategy.count", 7), "count 7"),
    "no seeds": (lambda p: p.adapt("--seeds", 0), "--seeds 0"),
    "command": (lambda p: ["adopt"], "adopt"),
    "option of evaluate": (lambda p: ["evaluate", p.run, "--data.store", p.store, "--spilt", "test"], "--spilt"),
    "part of evaluate": (lambda p: ["evaluate", p.run, "--data.store", p.store, "--split", "tests"], "tests"),
    "store of evaluate": (lambda p: ["evaluate", p.run, "--data.store", "nowhere"], "nowhere"),
    "nothing to inspect": (lambda p: ["inspect", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_nothing_is_written(foundation: Command, places: Places, name: str) -> None:
    case, culprit = MISTAKES[name]
    assert_refused(foundation, places, case(places), culprit)


def test_none_of_the_configured_properties(foundation: Command, places: Places) -> None:
    words = ["pretrain", "--data.store", places.store, *QUIET, "--out", places.folder / "run"]
    heads = '{"work_function": {"class_path": "heads.ScalarHead"}}'
    answer = foundation(*words, "--heads", heads)
    assert answer.code == 2
    assert "none of the configured properties work_function" in answer.err.splitlines()[-1]
    assert not (places.folder / "run").exists()


def test_a_store_of_another_schema_version(foundation: Command, places: Places) -> None:
    copy = shutil.copytree(places.store, places.folder / "copy")
    manifest = json.loads((copy / "manifest.json").read_text())
    (copy / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 99}))
    for words in (places.pretrain("--data.store", copy), ["predict", places.run, copy], ["data", "info", copy]):
        assert_refused(foundation, places, words, "copy", "99")


def all_commands(places: Places, checkpoint: Path) -> list[Words]:
    """Every command that reads a checkpoint."""
    return [
        ["inspect", checkpoint],
        ["predict", checkpoint, places.store],
        ["evaluate", checkpoint, "--data.store", places.store],
        places.adapt(pretrained=checkpoint),
        places.pretrain("--resume", checkpoint),
    ]


def test_a_checkpoint_of_another_project(foundation: Command, places: Places) -> None:
    foreign = [
        places.saved("theirs.ckpt", {"state_dict": {"weight": torch.zeros(2)}, "pytorch-lightning_version": "2.5"}),
        places.saved("tensor.ckpt", torch.zeros(3)),
        places.saved("card.ckpt", {"state_dict": {}, "foundation": "no card"}),
    ]
    for checkpoint in foreign:
        for words in all_commands(places, checkpoint):
            assert_refused(foundation, places, words, checkpoint.name)


def test_a_checkpoint_of_a_later_format(foundation: Command, places: Places) -> None:
    content = torch.load(places.checkpoint, weights_only=True)
    content["foundation"]["format_version"] = 99
    for words in all_commands(places, places.saved("later.ckpt", content)):
        assert_refused(foundation, places, words, "later.ckpt", "99")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.99])
def test_a_torn_checkpoint(foundation: Command, places: Places, share: float) -> None:
    whole = places.checkpoint.read_bytes()
    torn = places.file("torn.ckpt", whole[: int(share * len(whole))])
    for words in all_commands(places, torn):
        assert_refused(foundation, places, words, "torn.ckpt")


def test_a_file_that_is_no_checkpoint(foundation: Command, places: Places) -> None:
    for text in ("not a checkpoint\n", "\x80\x04", "PK\x03\x04"):
        assert_refused(foundation, places, ["inspect", places.file("text.ckpt", text)], "text.ckpt")


class Code:
    """Runs when it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return Path.touch, (Path("has_run"),)


def test_code_in_a_checkpoint_does_not_run(foundation: Command, places: Places) -> None:
    content = torch.load(places.checkpoint, weights_only=True)
    evil = places.saved("evil.ckpt", {**content, "extra": Code()})
    for words in all_commands(places, evil):
        assert_refused(foundation, places, words, "evil.ckpt")
    assert not (places.folder / "has_run").exists()
    torch.load(evil, weights_only=False)  # the trap is one
    assert (places.folder / "has_run").exists()


def test_a_torn_shared_folder(foundation: Command, places: Places) -> None:
    for name in ("card.json", "model.safetensors"):
        copy = shutil.copytree(places.run / "model", places.folder / f"torn-{name}")
        content = (copy / name).read_bytes()
        (copy / name).write_bytes(content[: len(content) // 2])
        for words in all_commands(places, copy)[:4]:
            assert_refused(foundation, places, words, copy.name)


def test_debug_shows_the_trace(foundation: Command, places: Places) -> None:
    with pytest.raises(ValueError, match=r"nowhere"):
        foundation("inspect", "nowhere", "--debug")
