"""Checkpoints and metrics.csv are whole wherever writing them is cut off."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from datamodules.errors import InputError
from foundation.resuming import find_resumable, step_of
from foundation.training.checkpoint_files import LAST, PREVIOUS, AtomicCheckpointIO, change_last, is_whole
from foundation.training.history import History, kept_history
from foundation.training.spec import ModelSpec


def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, target = AtomicCheckpointIO(), tmp_path / LAST
    files.save_checkpoint({"n": 1}, target)
    files.save_checkpoint({"n": 2}, target)
    assert [torch.load(tmp_path / name)["n"] for name in (LAST, PREVIOUS)] == [2, 1]
    assert is_whole(target)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=r"last.ckpt: cannot be written: .*No space left.*; the checkpoint before"):
        files.save_checkpoint({"n": 3}, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]
    assert torch.load(target)["n"] == 2


class Killed(BaseException):
    """Nothing is done about it, as about SIGKILL."""


BEFORE, SAVED = 11, 12  # steps behind the last two saves
CUT_OFF = {
    "the second save": ("save", 1, True),
    "the third save": ("save", 2, True),
    "the second save, without links": ("save", 1, False),
    "the third save, without links": ("save", 2, False),
    "a change": ("change", 1, True),
    "a change, without links": ("change", 1, False),
    "a save behind a change": ("save what was changed", 1, True),
    "a save behind a change, without links": ("save what was changed", 1, False),
}


@pytest.mark.parametrize(("what", "saves", "links"), CUT_OFF.values(), ids=CUT_OFF)
def test_writing_is_cut_off_anywhere(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, saves: int, links: bool
) -> None:
    """The run goes on from the save before or the new one, never from weights that were changed after training."""
    trained = torch.load(tiny_run / "checkpoints" / LAST, weights_only=True)
    spec = ModelSpec.from_dict(trained["foundation"]["spec"])
    steps = (SAVED,) if what == "change" else (SAVED, SAVED + 1)
    if not links:
        monkeypatch.setattr("os.link", refused)
    for calls in count():
        folder = tmp_path / str(calls)
        last = folder / "checkpoints" / LAST
        for step in (BEFORE, SAVED)[-saves:]:
            AtomicCheckpointIO().save_checkpoint(trained | {"global_step": step}, last)
        if what == "save what was changed":
            change_last(trained | {"global_step": 0}, last)
        with monkeypatch.context() as patch, suppress(Killed):
            left = iter(range(calls, -1, -1))
            for name in ("fsync", "link", "replace"):
                patch.setattr(os, name, cut_off(getattr(os, name), left))
            if what == "change":
                change_last(trained | {"global_step": 0}, last)
            else:
                AtomicCheckpointIO().save_checkpoint(trained | {"global_step": SAVED + 1}, last)
            break
        assert step_of(str(find_resumable("auto", folder, spec))) in steps
    assert calls >= 3
    assert step_of(str(find_resumable("auto", folder, spec))) == steps[-1]


def refused(*_: Any) -> None:
    raise OSError(1, "Operation not permitted")


def cut_off(call: Callable[..., Any], left: Iterator[int]) -> Callable[..., Any]:
    """Killed instead of making the last of the calls that are left."""

    def called(*arguments: Any) -> Any:
        if next(left) == 0:
            raise Killed
        return call(*arguments)

    return called


def test_rows_behind_the_last_checkpoint_are_dropped(tmp_path: Path) -> None:
    file = tmp_path / "metrics.csv"
    file.write_text("epoch,step,loss\n0,0,3.0\n0,1,2.0\n0,2,1.0\n1,")  # cut off in mid-row
    with kept_history(file, step=2):
        assert not file.exists()
        file.write_text("epoch,step,loss\n0,2,1.5\n")
    assert pd.read_csv(file)["loss"].tolist() == [3.0, 2.0, 1.5]


def test_rows_are_told_once_after_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between putting the rows of two starts into one file and removing the other."""
    file, rows = tmp_path / "metrics.csv", "epoch,loss,step\n0,0.1234567890123456789,0\n0,,1\n"
    file.write_text(rows)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", cut_off(Path.unlink, iter([0])))
        with pytest.raises(Killed), kept_history(file, step=2):
            pass
    with kept_history(file, step=2):
        pass
    assert file.read_text() == rows


def test_a_new_column_loses_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logger = History(tmp_path)
    logger.log_metrics({"loss": 1.0}, 0)
    logger.save()
    logger.log_metrics({"loss": 0.5, "error": 2.0}, 1)
    with monkeypatch.context() as patch:
        patch.setattr(csv.DictWriter, "writeheader", cut_off(csv.DictWriter.writeheader, iter([0])))
        with pytest.raises(Killed):
            logger.save()
    assert pd.read_csv(tmp_path / "metrics.csv").to_dict("list") == {"loss": [1.0], "step": [0]}
