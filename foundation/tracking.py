"""Weights & Biases: one run per training run, offline where nobody is logged in."""

from __future__ import annotations

import netrc
import os
import sys
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import WandbLogger

from foundation.files import write_text
from foundation.process import is_first_process


def default_mode() -> str:
    """Say "online" where a key is set, "offline" elsewhere; the environment's WANDB_MODE wins."""
    mode = os.environ.get("WANDB_MODE")
    if mode in ("online", "offline"):
        return mode
    if mode == "disabled":
        return "off"
    return "online" if _has_key() else "offline"


def wandb_logger(mode: str, folder: Path, group: str | None, config: Mapping[str, Any]) -> WandbLogger | None:
    """The logger of a run, None where mode is "off".

    Args:
        mode: "offline", "online" or "off".
        folder: The run's folder; records are kept under it.
        group: Ties runs together.
        config: Recorded with the run.
    """
    if mode == "off" or not is_first_process():
        return None
    import wandb

    settings = wandb.Settings(init_timeout=20, console="off", silent=True)
    arguments: dict[str, Any] = {
        "project": "foundation",
        "name": folder.name,
        "id": _run_id(folder),  # the same after a resume, which goes on with the run instead of opening another
        "group": group,
        "save_dir": str(folder),
        "config": dict(config),
        "settings": settings,
    }
    logger = WandbLogger(offline=mode == "offline", **arguments)
    try:
        _ = logger.experiment
    except wandb.errors.CommError:
        print("Weights & Biases does not answer: recording offline", file=sys.stderr)
        logger = WandbLogger(offline=True, **arguments)
        _ = logger.experiment
    outlive_service(logger.experiment)
    return logger


def outlive_service(run: Any) -> None:
    """Let a run go on training where W&B's own process has ended.

    Slurm sends SIGTERM to every process of a job, and that one obeys at once; what it has recorded until then is kept.
    """
    log, lost = run.log, False

    def guarded(*arguments: Any, **named: Any) -> None:
        nonlocal lost
        if lost:
            return
        try:
            log(*arguments, **named)
        except OSError as error:  # its connection
            lost = True
            print(f"Weights & Biases has ended ({error}): no more is recorded until the next start", file=sys.stderr)

    run.log = guarded


def close_early(tracker: WandbLogger) -> None:
    """Close the record of a run that stops, to be gone on with; W&B's process may have been stopped before."""
    import wandb

    with suppress(OSError):
        tracker.experiment.finish()
    with suppress(OSError):
        wandb.teardown()


def _run_id(folder: Path) -> str:
    """The id of this folder's run, made once."""
    file = folder / "wandb_run_id"
    if not file.is_file():
        write_text(file, uuid.uuid4().hex[:8])
    return file.read_text().strip()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return netrc.netrc().authenticators("api.wandb.ai") is not None
    except (OSError, netrc.NetrcParseError):
        return False
