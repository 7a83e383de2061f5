"""Locks as files: what one process makes, no other process makes at the same time, on whatever machine."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from foundation.files import write_json


class Busy(Exception):
    """Somebody else holds the lock."""


@contextmanager
def held(lock: Path, take_over: bool = True) -> Iterator[None]:
    """Hold a lock; it is given back on every way out.

    Args:
        lock: A file that stands while the lock is held.
        take_over: Whether the lock of a process of this machine that is gone is taken over.

    Raises:
        Busy: If another process holds it.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    own = lock.with_name(f".{lock.name}.{uuid.uuid4().hex}")
    own.write_text(json.dumps(_me()))
    try:
        claimed = _claim(own, lock)
        if not claimed and take_over and release_dead(lock):
            claimed = _claim(own, lock)
        if not claimed:
            holder = _holder(lock)
            raise Busy(f"process {holder.get('pid')} on {holder.get('host')} has it; it is free once {lock} is gone")
    finally:
        own.unlink()
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)


def release_dead(lock: Path) -> bool:
    """Remove a lock whose process ran on this machine and is gone; return whether it was removed."""
    with in_turn(lock.with_name(".takeover")):  # two that find the same dead holder must not both remove a lock
        holder = _holder(lock)
        if not holder or not _is_gone(holder):
            return False
        lock.unlink()
        return True


def holder_pid(lock: Path) -> int | None:
    """The process that holds a lock; None where nobody does."""
    pid = _holder(lock).get("pid")
    return None if pid is None else int(pid)


@contextmanager
def in_turn(file: Path) -> Iterator[None]:
    """Wait for one's turn; for work of a moment."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def make_once(target: Path, job: dict[str, Any], make: Callable[[], None]) -> Path:
    """Make a file or folder, unless it stands there and was made by the same job.

    Args:
        target: What is made; ``NAME.json`` beside it records the job.
        job: All that it depends on, as plain values.
        make: Makes it.

    Raises:
        Busy: If another process is making it.
    """
    record = target.with_name(f"{target.name}.json")
    if not _made(target, record, job):
        with held(target.with_name(f"{target.name}.lock")):
            if not _made(target, record, job):
                make()
                write_json(record, job)
    return target


def _made(target: Path, record: Path, job: dict[str, Any]) -> bool:
    return target.exists() and record.is_file() and json.loads(record.read_text()) == json.loads(json.dumps(job))


def _claim(own: Path, lock: Path) -> bool:
    try:
        os.link(own, lock)  # whole at once, and fails where a lock stands
    except FileExistsError:
        return False
    return True


def _holder(lock: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(lock.read_text())
    except FileNotFoundError:
        return {}
    return content


def _is_gone(holder: dict[str, Any]) -> bool:
    if holder["host"] != socket.gethostname():
        return False
    try:
        os.kill(holder["pid"], 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    return bool(holder["started"] != _started(holder["pid"]))  # the number is used again by another process


def _me() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}


def _started(pid: int) -> str | None:
    """When a process started, in ticks since the machine did; None where the system does not tell."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None
