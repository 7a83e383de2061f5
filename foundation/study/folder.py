"""A folder of targets: ``NAME.json.gz`` with records and ``splits/NAME.json`` with lists of ids."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from datamodules.splits import read_lists, training_ids, trials_of

_ENDINGS = (".json.gz", ".json", ".jsonl.gz", ".jsonl")


@dataclass(frozen=True)
class TargetFolder:
    """The folder.

    Attributes:
        path: Where it is.
    """

    path: Path

    @cached_property
    def targets(self) -> list[str]:
        """Properties with both records and lists, by name.

        Raises:
            InputError: If there are none.
        """
        names = sorted(file.stem for file in (self.path / "splits").glob("*.json"))
        found = [name for name in names if self._records(name) is not None]
        if not found:
            raise InputError(f"--data {self.path}: no NAME.json.gz with a splits/NAME.json there")
        return found

    def records(self, target: str) -> Path:
        """The file of a property's records."""
        file = self._records(target)
        assert file is not None, target
        return file

    def splits(self, target: str) -> Path:
        """The file of its lists."""
        return self.path / "splits" / f"{target}.json"

    def trials(self, target: str) -> dict[str, list[int]]:
        """Its trials and their sizes.

        Raises:
            InputError: If it has none.
        """
        trials = trials_of(self._lists(target))
        if not trials:
            raise InputError(f"{self.splits(target)}: no trial there: neither lists by size nor a list 'train'")
        return trials

    def has(self, target: str, trial: str, size: int) -> bool:
        """Whether a trial has a size; a single list has every size up to its length."""
        sizes = self.trials(target).get(trial, [])
        single = isinstance(self._lists(target).get(trial), list)
        return 0 < size <= sizes[-1] if sizes and single else size in sizes

    def check(self, target: str, trial: str, size: int) -> None:
        """Raise an InputError if there is no such trial or size, or its list overlaps the test list."""
        training_ids(self.splits(target), self._lists(target), trial, size)

    def digest(self, target: str) -> dict[str, str]:
        """Hashes of records and lists."""
        return {"records": file_digest(self.records(target)), "lists": file_digest(self.splits(target))}

    def _records(self, target: str) -> Path | None:
        files = (self.path / f"{target}{ending}" for ending in _ENDINGS)
        return next((file for file in files if file.is_file()), None)

    def _lists(self, target: str) -> dict[str, Any]:
        return _read(self.splits(target))


def file_digest(file: Path) -> str:
    """SHA-256 of a file, read once by a process as long as it does not change."""
    return _digest(file, _state(file))


def _read(file: Path) -> dict[str, Any]:
    return _read_once(file, _state(file) if file.is_file() else ())


def _state(file: Path) -> tuple[int, ...]:
    state = file.stat()
    return state.st_mtime_ns, state.st_size, state.st_ino


@cache
def _read_once(file: Path, state: tuple[int, ...]) -> dict[str, Any]:
    return read_lists(file)


@cache
def _digest(file: Path, state: tuple[int, ...]) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
