"""Whether what a job reads is there, can be read, and is seen by other machines."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from datamodules.errors import InputError
from foundation.slurm.finding import Finding
from foundation.slurm.submission import Submission, value_of, values_of

_SHARED = ("nfs", "lustre", "gpfs", "beegfs", "ceph", "panfs", "weka", "fuse", "afs", "orangefs", "9p", "virtiofs")


def inputs(job: Submission) -> Iterator[Finding]:
    """All of it; what several tasks read is told once."""
    found: list[Finding] = []
    if job.script is not None and job.script.name == "adapt_array.sbatch":
        found += _lines(job)
        runs = [[*job.arguments[1:], *line] for line in lines_of(job)] or [job.arguments[1:]]
    else:
        runs = [job.arguments]
    for words in runs:
        found += _run(job.command, words)
    yield from dict.fromkeys(found)


def lines_of(job: Submission) -> list[list[str]]:
    """The words of every line of an array's file that counts; none where there is no such file."""
    if not job.arguments or not Path(job.arguments[0]).is_file():
        return []
    lines = Path(job.arguments[0]).read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line.strip() and not line.strip().startswith("#")]


def _lines(job: Submission) -> Iterator[Finding]:
    array = job.options.get("array")
    if array is None:
        yield Finding("problem", "no --array: give the tasks, such as --array=1-8")
    if not job.arguments or job.arguments[0].startswith("-"):
        yield Finding("problem", "no file of lines: it comes first behind the script's name")
        return
    if not Path(job.arguments[0]).is_file():
        yield Finding("problem", f"{job.arguments[0]}: no such file of lines")
        return
    tasks = [int(number) for number in re.findall(r"\d+", re.sub(r"[:%]\d+", "", array or ""))]
    count = len(lines_of(job))
    if tasks and not 1 <= min(tasks) <= max(tasks) <= count:
        yield Finding("problem", f"--array={array}: {job.arguments[0]} has lines 1 to {count}")


def _run(command: str | None, words: Sequence[str]) -> Iterator[Finding]:
    if command == "study":
        yield from _study(words)
    elif command == "sweep":
        yield from _journal(words)
        varied = any(word.startswith("data.store=") for word in values_of(words, "vary"))
        yield from _training(None if varied else "adapt", words)
    else:
        yield from _training(command, words)


def _training(command: str | None, words: Sequence[str]) -> Iterator[Finding]:
    from datamodules.store import CrystalStore

    yield from _configs(words)
    store = value_of(words, "data.store")
    if store is not None:
        try:
            CrystalStore.open(store)
            yield _place("--data.store", Path(store))
        except InputError as error:
            yield Finding("problem", f"--data.store {error}")
    elif command in ("pretrain", "adapt"):
        yield Finding("problem", "no --data.store, neither as an option nor in a --config: say which store it reads")
    for name in values_of(words, "pretrained"):
        yield from _checkpoint(name)


def _study(words: Sequence[str]) -> Iterator[Finding]:
    from foundation.study.config import load_config

    folder = value_of(words, "data", configured=False)
    try:
        config = load_config(value_of(words, "config") or "configs/study/devi2024.yaml")
        # where the study looks by itself
        folder = folder or str(Path(os.environ.get("FOUNDATION_DATA", "../shared/data")) / config.data)
    except InputError as error:
        yield Finding("problem", f"--config: {str(error).removeprefix('--config ')}")
    if folder is not None and not Path(folder).is_dir():
        yield Finding("problem", f"--data {folder}: no such folder")
    elif folder is not None:
        yield _place("--data", Path(folder))
    for word in values_of(words, "pretrained", configured=False):
        yield from _checkpoint(word if Path(word).exists() else word.rpartition("=")[2])


def _journal(words: Sequence[str]) -> Iterator[Finding]:
    journal = value_of(words, "journal", configured=False)
    if journal is None:
        yield Finding("problem", "no --journal: name the file that all workers share")
    elif not Path(journal).parent.is_dir():
        yield Finding("warning", f"--journal {journal}: there is no folder {Path(journal).parent}; it will be made")
    else:
        yield _place("--journal", Path(journal))


def _configs(words: Sequence[str]) -> Iterator[Finding]:
    from foundation.paths import config_path

    for name in values_of(words, "config"):
        try:
            config_path(name)
        except InputError as error:
            yield Finding("problem", f"--config: {error}")
            continue
        if Path(name).exists():  # shipped ones are where the program is
            yield _place("--config", Path(name))


def _checkpoint(name: str) -> Iterator[Finding]:
    from foundation.checkpoint import find_members

    try:
        find_members(name)
    except InputError as error:
        yield Finding("problem", f"--pretrained {error}")
        return
    if Path(name).exists():
        yield _place("--pretrained", Path(name))


def _place(option: str, path: Path) -> Finding:
    if not os.access(path if path.exists() else path.parent, os.R_OK):
        return Finding("problem", f"{option} {path}: cannot be read")
    kind = _file_system(path)
    shared = kind.startswith(_SHARED)
    level, told = ("ok", "shared") if shared else ("warning", "of this machine alone, unless mounted elsewhere")
    return Finding(level, f"{option} {path}: on a {kind} file system, {told}")


def _file_system(path: Path) -> str:
    """The kind of file system that a path is on."""
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    real = path.resolve()
    fitting = [(mount[1], mount[2]) for mount in mounts if real.is_relative_to(mount[1])]
    return max(fitting, key=lambda mount: len(mount[0]))[1] if fitting else "unknown"
