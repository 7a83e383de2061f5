"""The manifest of a checkpoint: fingerprints of every labelled crystal that its weights have seen.

It holds the training and validation crystals of the run, and what the checkpoint that the run started from had seen.
A checkpoint made without one has seen nobody knows what, which is not the same as nothing.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.fingerprints import Seen
from foundation.process import is_first_process

FILE = "seen.safetensors"


def unknown() -> Seen:
    """The manifest of a checkpoint that carries none."""
    return Seen.nothing(complete=False)


def with_data(seen: Seen, data: CrystalDataModule) -> Seen:
    """What a model has seen once it is trained on these data, of which those that validate are a part.

    Only the first process of a distributed run, which writes the checkpoints, goes through the crystals.
    """
    if not is_first_process():
        return seen
    parts = [seen]
    for trained in [data] + ([data.rehearsal.data] if data.rehearsal is not None else []):
        rows = np.concatenate([trained.split.train, trained.split.val])
        parts.append(Seen.of(trained.store, rows, trained.names, trained.labelled[rows]))
    return Seen.joined(parts)


def save_seen(folder: Path, seen: Seen) -> None:
    """Write the manifest of a model that is shared as a folder."""
    save_file(seen.arrays(), folder / FILE)
    (folder / FILE).chmod(0o644)  # safetensors makes it readable by its owner alone


def read_seen(folder: Path) -> Seen:
    """The manifest in the folder of a shared model.

    Raises:
        SafetensorError: If it is torn.
        ValueError: If it is no manifest.
    """
    return Seen.from_arrays(load_file(folder / FILE)) if (folder / FILE).is_file() else unknown()


def rebuild(folder: str, store: str, exclude: list[str] | None = None) -> Seen:
    """Write the manifest of a shared model that was made without one, from its card and its data.

    Args:
        folder: The shared model, trained from fresh weights.
        store: The store it was trained on, wherever it lies now.
        exclude: The places it was kept from, wherever they lie now.

    Raises:
        InputError: If the data are not those of the card, or the model started from another one.
    """
    card = json.loads((Path(folder) / "card.json").read_text())
    if card["pretrained"]:
        raise InputError(f"{folder}: started from {card['pretrained']['path']}; what that has seen is not in the card")
    data = CrystalDataModule(**(card["data"]["config"] | {"store": store, "exclude": exclude}))
    if data.store.content_hash != card["data"]["store"]["content_hash"]:
        raise InputError(f"{store}: not the store that {folder} was trained on, whose content hash is another")
    data.choose(list(card["spec"]["heads"]), data.recipe)  # neighbours play no part here
    found = {part: len(data.split.rows(part)) for part in ("train", "val", "test")}
    labels = {name: len(data.training_labels(name)[0]) for name in data.names}
    if found != {part: card["data"]["split"][part] for part in found} or labels != card["data"]["labels"]:
        raise InputError(f"{folder}: its card has other counts of crystals than {found} with labels {labels}")
    seen = with_data(Seen.nothing(), data)
    save_seen(Path(folder), seen)
    return seen
