"""Features of atoms that need no computing again, since the part of the encoder behind them does not train."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rows = npt.NDArray[np.int64]


class Known(NamedTuple):
    """What is known of the atoms of one batch.

    Attributes:
        blocks: Blocks of the encoder that these features have gone through; one more than there are where they
            have gone through the readout too.
        features: [N, ...] tensors.
    """

    blocks: int
    features: list[Tensor]


class KnownFeatures:
    """Features of the atoms of some crystals of a store.

    Args:
        blocks: As in ``Known``.
        needs_edges: Whether the encoder has edges to look at from here on.
        rows: [K] rows of the crystals.
        num_atoms: [K] their numbers of atoms.
        features: [sum N, ...] tensors, the atoms of the crystals one after another.
    """

    def __init__(self, blocks: int, needs_edges: bool, rows: Rows, num_atoms: Rows, features: list[Tensor]) -> None:
        self.blocks = blocks
        self.needs_edges = needs_edges
        self.features = features
        self._place = {row: place for place, row in enumerate(rows.tolist())}
        self._ptr = np.concatenate([[0], np.cumsum(num_atoms)])

    def covers(self, rows: Rows) -> bool:
        """Whether the features of all these crystals are known."""
        return all(row in self._place for row in rows.tolist())

    def take(self, rows: Rows) -> Known:
        """The features of the atoms of the given rows, in order."""
        places = [self._place[row] for row in rows.tolist()]
        atoms = np.concatenate([np.arange(self._ptr[place], self._ptr[place + 1]) for place in places])
        index = torch.from_numpy(atoms)
        return Known(self.blocks, [feature.index_select(0, index) for feature in self.features])
