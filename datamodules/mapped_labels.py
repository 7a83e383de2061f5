"""The labels that a run trains on as one array on disk, mapped into the memory of all its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.cache import kept
from datamodules.store import CrystalStore

LAYOUT = 1  # of the file, and of what labels are made from those of a store; another layout is another file
Read = Callable[[int, CrystalStore], npt.NDArray[np.float64]]


def mapped_labels(store: CrystalStore, names: Sequence[str], read: Read) -> Tensor:
    """[M, P] labels in torch's default type, written on first use.

    What is written into the tensor stays in the memory of this process.

    Args:
        store: The store.
        names: The P properties.
        read: Reads the labels of a block of the store that begins at a row.
    """

    def write(folder: Path) -> None:
        whole = np.lib.format.open_memmap(folder / "labels.npy", "w+", _dtype(), (len(store), len(names)))
        for start, block in store.blocks():
            whole[start : start + len(block)] = read(start, block)
        whole.flush()

    place = kept(store, "labels", labels_key(names), write)
    return torch.from_numpy(np.asarray(np.load(place / "labels.npy", mmap_mode="c")))


def labels_key(names: Sequence[str]) -> list[Any]:
    """What the labels of these properties depend on besides the store."""
    return [list(names), str(_dtype()), LAYOUT]


def _dtype() -> np.dtype[Any]:
    return torch.empty(0).numpy().dtype
