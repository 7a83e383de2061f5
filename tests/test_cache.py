"""What is kept beside a store: whole or not at all, never stale, and nothing left of processes that were killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from testing import compounds, make_store

from datamodules import cache, datamodule, mapped_split
from datamodules.cache import kept
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from datamodules.splits import Split
from datamodules.store import CrystalStore

PARTS = ("train", "val", "test")


@pytest.fixture
def store(tmp_path: Path) -> CrystalStore:
    return CrystalStore.open(make_store(tmp_path / "store", compounds(40)))


def write(folder: Path) -> None:
    (folder / "file").write_text("whole")


def make_old(folder: Path) -> None:
    """As if nothing had changed there for two days."""
    for path in (*folder.iterdir(), folder):
        os.utime(path, (time.time() - 2 * 24 * 3600,) * 2)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_what_a_killed_process_left_is_removed_once_it_is_old(store: CrystalStore) -> None:
    script = (
        "import os, sys\n"
        "from datamodules.cache import kept\n"
        "from datamodules.store import CrystalStore\n"
        "def write(folder):\n"
        "    (folder / 'file').write_text('half')\n"
        "    os.kill(os.getpid(), 9)\n"
        "kept(CrystalStore.open(sys.argv[1]), 'things', [1], write)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, str(store.path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = (store.path / "things").glob(".writing-*")
    place = kept(store, "things", [1], write)
    assert (place / "file").read_text() == "whole"
    assert left.is_dir()  # it may be another node's
    make_old(left)
    (left / "file").touch()
    kept(store, "things", [1], write)
    assert left.is_dir()  # what is in it has changed
    make_old(left)
    kept(store, "things", [1], write)
    assert names(store.path / "things") == {place.name}


def test_a_writer_taken_for_dead_puts_nothing_in_place(store: CrystalStore) -> None:
    def sleep(folder: Path) -> None:
        write(folder)
        make_old(folder)
        kept(store, "things", ["other"], write)
        (folder / "rest").write_text("")

    with pytest.raises(FileNotFoundError):
        kept(store, "things", ["own"], sleep)
    assert names(store.path / "things") == {kept(store, "things", ["other"], write).name}


def test_where_a_store_cannot_be_written_the_cache_is_elsewhere(
    store: CrystalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "is_writable", lambda folder: False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    monkeypatch.setattr(mapped_split, "MAPPED_FROM", 0)
    data = CrystalDataModule(str(store.path))
    data.choose(["band_gap"], NeighborRecipe())
    assert names(tmp_path / "temporary") == {f"foundation-{kind}-{os.getuid()}" for kind in ("labels", "splits")}
    left = tmp_path / "temporary" / f"foundation-splits-{os.getuid()}" / ".writing-x"
    left.mkdir()
    make_old(left)
    data.choose(["band_gap"], NeighborRecipe())
    assert not left.exists()


def chosen(store: CrystalStore, names: str = "band_gap", **options: Any) -> Split:
    data = CrystalDataModule(str(store.path), **options)
    data.choose(names.split(","), NeighborRecipe())
    return data.split


def test_a_split_is_found_and_is_the_same(store: CrystalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"train_size": 10},
        {"val_share": 0.0},
        {"test_share": 0.3},
        {"names": "shear_modulus"},
        {"names": "band_gap,shear_modulus"},
    ]
    in_memory = [chosen(store, **way) for way in ways]
    assert not (store.path / "splits").exists()  # the store is small
    monkeypatch.setattr(mapped_split, "MAPPED_FROM", 0)
    for count, (way, expected) in enumerate(zip(ways, in_memory, strict=True)):
        written = chosen(store, **way)
        assert len(names(store.path / "splits")) == count + 1
        written.train[:] = -1  # stays in this process
        with monkeypatch.context() as patch:
            patch.setattr(datamodule, "split_by_formula", None)
            found = chosen(store, **way)
        assert [found.rows(part).tolist() for part in PARTS] == [expected.rows(part).tolist() for part in PARTS]
        assert (found.how, found.notes) == (expected.how, expected.notes)
    with pytest.raises(InputError, match="--train-size 41: only"):
        chosen(store, train_size=41)
    assert len(names(store.path / "splits")) == len(ways)


def test_other_code_or_content_is_another_split(
    store: CrystalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_split, "MAPPED_FROM", 0)
    chosen(store)
    monkeypatch.setattr(mapped_split, "CODE", "other")
    chosen(store)
    monkeypatch.setattr(np, "__version__", "0.0")
    chosen(store)
    assert len(names(store.path / "splits")) == 3
    other = CrystalStore.open(make_store(tmp_path / "other", compounds(40, seed=1)))
    chosen(other)
    assert not names(store.path / "splits") & names(other.path / "splits")


def test_of_processes_that_come_at_once_one_makes_the_split(
    store: CrystalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped_split, "MAPPED_FROM", 0)
    made = []

    def make() -> Split:
        made.append(1)
        time.sleep(0.2)
        return Split(*(np.arange(3) + part for part in range(3)), how="by hand", notes=["one"])

    with ThreadPoolExecutor(4) as threads:
        splits = list(threads.map(lambda _: mapped_split.mapped_split(store, [], make), range(4)))
    assert len(made) == 1
    assert all([*split.train, *split.test] == [0, 1, 2, 2, 3, 4] and split.notes == ["one"] for split in splits)
