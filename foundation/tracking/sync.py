"""Records made offline are uploaded by W&B's own sync."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from datamodules.errors import InputError
from foundation.tracking.server import NAME, UNSENT, has_key, why_unreachable

_HEADER = 7  # bytes with which W&B begins a record


def find_records(folders: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """The records below some folders that wait for their upload, and those that are uploaded already, oldest first.

    A model is then known to the server as what its run has made before another run starts from it.

    Args:
        folders: Run folders, folders of run folders, or records themselves.

    Raises:
        InputError: If there is no such folder, or no record below any of them.
    """
    waiting: set[Path] = set()
    uploaded: set[Path] = set()
    for folder in map(Path, folders):
        if not folder.exists():
            raise InputError(f"{folder}: no such folder; give the folders of runs")
        for file in [folder] if folder.is_file() else folder.rglob("run-*.wandb"):
            # W&B's own folders of runs that were online, and went through, are none of ours.
            ours = file.parent.name.startswith("offline-run-") or (file.parent / UNSENT).exists()
            # A run that was killed in its first second has recorded nothing, which W&B would call an error.
            if ours and file.stat().st_size > _HEADER:
                (uploaded if _mark(file).exists() else waiting).add(file.resolve())
    if not waiting and not uploaded:
        raise InputError(f"{' '.join(map(str, folders))}: no run there was recorded offline by {NAME}")
    return sorted(waiting, key=_begun), sorted(uploaded, key=_begun)


def check_server() -> None:
    """Refuse to begin what cannot be done.

    Raises:
        InputError: If nobody is logged in, or the server does not answer.
    """
    if not has_key():
        raise InputError(f"no key of {NAME}: run `wandb login`, or set WANDB_API_KEY")
    problem = why_unreachable()
    if problem is not None:
        raise InputError(f"{NAME}: {problem}; nothing was uploaded, try again where there is a network")


def upload(record: Path) -> str | None:
    """Upload one record.

    Args:
        record: A file that ``find_records`` gave.

    Returns:
        Why it was not uploaded; None where it was.
    """
    environment = {name: value for name, value in os.environ.items() if name != "WANDB_MODE"}
    environment["WANDB_DIR"] = str(record.parents[2])  # its logs go to the run's own folder wandb/, not to this one
    words = [sys.executable, "-m", "wandb", "sync", "--include-online", str(record)]
    answer = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return None if _mark(record).exists() else _reason(answer)


def _begun(record: Path) -> tuple[str, Path]:
    """When a record was begun, as the name of its folder tells."""
    found = re.search(r"run-(\d{8}_\d{6})-", record.parent.name)
    return (found[1] if found else "", record)


def _mark(file: Path) -> Path:
    """What W&B leaves beside a record that it has uploaded."""
    return file.with_name(f"{file.name}.synced")


def _reason(answer: subprocess.CompletedProcess[str]) -> str:
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", answer.stdout + answer.stderr)
    lines = [line.removeprefix("wandb: ").strip() for line in re.split(r"[\r\n]+", plain) if line.strip()]
    told = [line for line in lines if re.match(r"(ERROR|Error)", line)] or lines[-1:]
    return told[0] if told else f"`wandb sync` ended with {answer.returncode}"
