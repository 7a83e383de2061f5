"""`foundation sweep`: trials are shared by a journal, and the best is named."""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Command
from testing import QUIET, TINY

from foundation.commands import sweep

pytest.importorskip("optuna")


class Trained:
    """In the place of a command's process: the loss is the distance of the rate from 0.003."""

    started: list[list[str]]
    code = 0

    def __init__(self, words: list[str], **_: Any) -> None:
        Trained.started.append(words)
        self.returncode = self.code
        rate = float(next(word for word in words if word.startswith("--rate=")).partition("=")[2])
        folder = Path(words[words.index("--out") + 1])
        folder.mkdir(parents=True)
        (folder / "metrics.csv").write_text(f"step,val/loss\n1,9.0\n2,{abs(rate - 0.003)}\n3,\n")

    def communicate(self) -> tuple[None, str]:
        return None, "foundation: error: no such option"


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> type[Trained]:
    Trained.started, Trained.code = [], 0
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


def test_one_real_trial(foundation: Command, tiny_store: Path, tmp_path: Path) -> None:
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
