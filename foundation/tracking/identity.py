"""Which run this is, and which runs belong together."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.files import write_text
from foundation.process import is_first_process

FILE = "wandb-run-id"


def run_id(folder: Path, resumed: bool) -> str:
    """The id of a run, kept in its folder: the same for every start of one run, another for a new one.

    Args:
        folder: The run's folder.
        resumed: Whether this start goes on with the run there.
    """
    file = folder / FILE
    if resumed and file.is_file():
        kept = file.read_text().strip()
        if kept:
            return kept
    made = secrets.token_hex(4)  # no random number that training would draw
    if is_first_process():
        write_text(file, made + "\n")
    return made


def run_name(folder: Path) -> str:
    """The name of a run: that of its folder, with the folder above it for a member of an ensemble."""
    folder = folder.resolve()
    member = re.fullmatch(r"(seed|fold)\d+", folder.name)
    return f"{folder.parent.name}-{folder.name}" if member else folder.name


def identify(folder: Path, resumed: bool, card: Mapping[str, Any], group: str | None) -> dict[str, str]:
    """Id, name and group of a run, as its checkpoint's card keeps them.

    An adaptation is in the group of the run that trained what it starts from.

    Args:
        folder: The run's folder.
        resumed: Whether this start goes on with the run there.
        card: The card of the model that trains.
        group: The group where the model starts from fresh weights; None for one of its own.
    """
    own, name = run_id(folder, resumed), run_name(folder)
    source = card.get("pretrained")
    return {"id": own, "name": name, "group": group_of(source) if source else group or f"{name}-{own}"}


def group_of(source: Mapping[str, Any]) -> str:
    """The group of the run behind a checkpoint, or the checkpoint's name where its card does not tell.

    Args:
        source: The entry ``pretrained`` of a card.
    """
    run = source.get("run")
    return str(run["group"]) if run else model_name(Path(source["path"]))


def model_name(path: Path) -> str:
    """What to call a model by where it lies: its run's folder, or the folder in which it is shared."""
    path = path.resolve()
    if path.suffix == ".ckpt":
        path = path.parent.parent if path.parent.name == "checkpoints" else path.with_suffix("")
    elif path.name == "model":
        path = path.parent
    return run_name(path)
