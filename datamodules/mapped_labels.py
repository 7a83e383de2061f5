"""The labels that a run trains on as one array on disk, mapped into the memory of all its processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.cache import kept
from datamodules.store import CrystalStore

LAYOUT = 1  # of the file, and of what labels are made from those of a store; another layout is another file


def mapped_labels(store: CrystalStore, names: Sequence[str], read: Callable[[], npt.NDArray[np.float64]]) -> Tensor:
    """[M, P] labels in torch's default type, written on first use.

    What is written into the tensor stays in the memory of this process.

    Args:
        store: The store.
        names: The P properties.
        read: Reads the labels.
    """
    dtype = torch.empty(0).numpy().dtype

    def write(folder: Path) -> None:
        np.save(folder / "labels.npy", read().astype(dtype))

    place = kept(store, "labels", [list(names), str(dtype), LAYOUT], write)
    return torch.from_numpy(np.asarray(np.load(place / "labels.npy", mmap_mode="c")))
