"""Checkpoints that are on disk whole or not at all, and the one before the last."""

from __future__ import annotations

import os
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from datamodules.errors import InputError

LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # what was last before; both are there at any moment


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
        temporary = target.with_name(f".{target.name}.writing")
        try:
            with temporary.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
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


def _kept(last: Path) -> Path:
    """The last file under another name too, without a moment at which there is no last one."""
    link = last.with_name(f".{PREVIOUS}.writing")
    with suppress(FileNotFoundError):
        link.unlink()
    try:
        os.link(last, link)
    except OSError:  # a file system without hard links: until the new file is in place only `previous.ckpt` is there
        os.replace(last, link)
    return link


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems cannot
            os.fsync(handle)
    finally:
        os.close(handle)
