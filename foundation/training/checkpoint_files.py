"""Checkpoints that are on disk whole or not at all, and the one before the last."""

from __future__ import annotations

import os
import shutil
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from datamodules.errors import InputError

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # what was last before; one of the two is there at any moment
TRAINED = "trained.ckpt"  # what training left, where last.ckpt has been changed since


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, waits for the disk, then puts the file in place: a kill at any moment tears nothing.

    The file before ``last.ckpt`` stays as ``previous.ckpt``, for a disk that loses what it said was written.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write one file.

        Raises:
            InputError: If it cannot be written; what was there before stays.
        """
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = _beside(target)
        try:
            _write(checkpoint, temporary)
            if target.name == LAST:
                _put_trained_back(target)
            kept = _kept(target) if target.name == LAST and target.exists() else None
            os.replace(temporary, target)
            if kept is not None:  # only now: the last file may be torn, and the one before it all there is
                os.replace(kept, target.with_name(PREVIOUS))
            _sync_folder(target.parent)
        except (OSError, RuntimeError) as error:
            with suppress(OSError):
                temporary.unlink()
            raise InputError(f"{target}: cannot be written: {error}; the checkpoint before it stays") from error


def is_whole(path: Path) -> bool:
    """Whether a checkpoint is complete: its parts carry checksums, which reading a torn file would not look at."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (OSError, zipfile.BadZipFile, EOFError, ValueError):
        return False


def clear_torn(folder: Path) -> None:
    """Remove what was being written when an earlier start of the run was killed."""
    for file in folder.glob(_beside(folder / "*").name):
        file.unlink()


def left_by_training(last: Path) -> Path:
    """The checkpoint that training goes on from: the last one, or what that was before it was changed."""
    trained = last.with_name(TRAINED)
    return trained if trained.is_file() else last


def change_last(content: Mapping[str, Any], last: Path) -> None:
    """Put other content in the place of the last checkpoint; what training left stays as ``trained.ckpt``.

    So a run that goes on from there, because it was cut off or is one of several, changes the same weights, not those
    that were changed before.
    """
    trained = last.with_name(TRAINED)
    if not trained.exists():
        try:
            os.link(last, trained)
        except OSError:  # a file system without hard links
            shutil.copyfile(last, _beside(trained))
            os.replace(_beside(trained), trained)
    _write(content, _beside(last))
    os.replace(_beside(last), last)
    _sync_folder(last.parent)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}.writing")


def _write(content: Mapping[str, Any], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())


def _put_trained_back(last: Path) -> None:
    """Training goes on: the change is undone before the next file takes the place of the last one."""
    with suppress(FileNotFoundError):
        os.replace(last.with_name(TRAINED), last)


def _kept(last: Path) -> Path | None:
    """The last file under another name too, without a moment at which there is no last one."""
    link = _beside(last.with_name(PREVIOUS))
    with suppress(FileNotFoundError):
        link.unlink()
    try:
        os.link(last, link)
    except OSError:  # a file system without hard links: until the new file is in place only `previous.ckpt` is there
        os.replace(last, last.with_name(PREVIOUS))
        return None
    return link


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)
