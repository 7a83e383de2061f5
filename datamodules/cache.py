"""What is made from a store once and kept beside it, for all processes to map into memory."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from datamodules.store import CrystalStore

LEFT = 24 * 3600  # seconds without any change after which nobody is writing any more
_WRITING = ".writing-"


def kept(store: CrystalStore, kind: str, key: list[Any], write: Callable[[Path], None]) -> Path:
    """A folder that is written on first use, whole or not at all.

    It lies in the store's own folder; where that cannot be written, in the system's temporary folder. The processes
    of a distributed run come here at once: one writes, the others wait for it.

    Args:
        store: The store that it is made from.
        kind: What it is.
        key: Plain values that the content depends on besides the store's files; with them they make its name, so that
            it cannot be stale.
        write: Writes the content into a folder that is there.
    """
    name = hashlib.sha256(json.dumps([store.files_hash, *key]).encode()).hexdigest()[:24]
    place = store.path / kind / name
    _clear_left(place.parent)
    if place.is_dir():
        return place
    if not is_writable(place.parent):
        place = Path(tempfile.gettempdir()) / f"foundation-{kind}-{os.getuid()}" / name
        _clear_left(place.parent)
    place.parent.mkdir(parents=True, exist_ok=True)
    with _one_at_a_time(place.parent / f".{name}.lock"):
        if not place.is_dir():
            _write(place, write)
    return place


def is_writable(folder: Path) -> bool:
    """Whether files can be written here; the folder is made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


def _write(place: Path, write: Callable[[Path], None]) -> None:
    temporary = Path(tempfile.mkdtemp(dir=place.parent, prefix=_WRITING))
    try:
        write(temporary)
        os.rename(temporary, place)
    except OSError:
        # Another process was first, where files cannot be locked: what it made holds the same content.
        if not place.is_dir():
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _clear_left(folder: Path) -> None:
    """Remove what processes were writing that were killed.

    They are told by time, not by their number: whoever writes may run on another node, whose locks are not seen here on
    every file system. A killed run that starts again finds its folder too young, hence every opening looks.
    """
    for left in folder.glob(f"{_WRITING}*"):
        with suppress(OSError):  # another process removes it as well, or it is another user's
            if time.time() - max(path.stat().st_mtime for path in (left, *left.iterdir())) > LEFT:
                # Out of the way as a whole: a writer that was only asleep must not put the rest of it in place.
                gone = left.with_name(f"{left.name}-gone")
                os.rename(left, gone)
                shutil.rmtree(gone)


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    """Hold a lock that goes when the process does; without effect on a file system that has none."""
    with path.open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield
            return
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
