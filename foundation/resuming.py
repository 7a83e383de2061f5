"""Which checkpoint a run goes on from.

One rule: ``--resume FILE`` goes on from that file; ``--resume auto`` from the last whole checkpoint in the run's own
folder, or starts afresh where there is none; and a job that Slurm has started again does as with ``auto``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from datamodules.errors import InputError
from foundation.checkpoint import find_members, load_checkpoint
from foundation.process import is_first_process
from foundation.training.checkpoint_files import LAST, PREVIOUS, is_whole, left_by_training
from foundation.training.spec import ModelSpec

AUTO, NEVER = "auto", "no"


def find_resumable(asked: str | None, folder: Path, spec: ModelSpec) -> str | None:
    """The file that a run of this architecture goes on from; None for a fresh start.

    A torn file is passed over for the one before it, which is told.

    Args:
        asked: What ``--resume`` says: a name that ``find_members`` takes, "auto", "no", or nothing.
        folder: The run's folder.
        spec: Architecture of the run.

    Raises:
        InputError: If there is none where one is named, all are torn, or they belong to another architecture.
    """
    if asked in (None, NEVER):
        return None
    if asked == AUTO:
        last = folder / "checkpoints" / LAST
    else:
        members = find_members(str(asked))
        if len(members) > 1 or members[0].is_dir():
            raise InputError(f"--resume {asked}: give the .ckpt file of one run")
        last = members[0]
    files = [left_by_training(last), last.with_name(PREVIOUS)] if last.name == LAST else [last]
    files = [file for file in files if file.is_file()]
    problems: list[str] = []
    for file in files:
        problem = _problem(file, spec)
        if problem is None:
            if problems:
                _say(f"resume: {problems[0]}; going on from the one before it, {file}")
            return str(file)
        problems.append(problem)
    if problems:
        raise InputError(f"--resume {asked}: {problems[0]}")
    return None


def step_of(file: str) -> int:
    """How many optimizer steps are behind a checkpoint."""
    return int(torch.load(file, map_location="cpu", weights_only=True, mmap=True)["global_step"])


def _problem(file: Path, spec: ModelSpec) -> str | None:
    """Why a run cannot go on from a file."""
    try:
        card = load_checkpoint(file).card
    except InputError as error:
        return str(error)
    if not is_whole(file):
        return f"{file}: torn, its checksums do not fit"
    if ModelSpec.from_dict(card["spec"]) != spec:
        return f"{file} has another encoder or other heads than this run; resume with its own config"
    return None


def _say(line: str) -> None:
    if is_first_process():
        print(line, file=sys.stderr, flush=True)
