"""Labels of more than one number: tensors, spectra, and whatever each atom has, kept flat and gathered at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class ShapedLabels:
    """Labels of one property for the M crystals of a store.

    Attributes:
        first: [M] place of a crystal's first entry in ``values``; -1 where it has no label.
        sizes: [M] entries per crystal: 1, or its number of atoms for a label of each atom.
        values: [K, ...] entries, views of a mapped file; NaN where an atom has no label.
    """

    first: Ints
    sizes: Ints
    values: npt.NDArray[np.float64]

    def present(self, rows: slice) -> npt.NDArray[np.float64]:
        """[K] 1 for a crystal of these that has a label, NaN for one that has none."""
        return np.where(self.first[rows] >= 0, 1.0, np.nan)

    def gather(self, rows: Ints, keep: npt.NDArray[np.bool_] | None = None) -> Tensor:
        """The labels of some crystals, one after another.

        Args:
            rows: [B] rows.
            keep: [B] which of their labels count; None takes all.

        Returns:
            [B, ...], or [N, ...] for labels of atoms, float64; NaN where there is none.
        """
        sizes, first = self.sizes[rows], self.first[rows]
        missing = (first < 0) if keep is None else (first < 0) | ~keep
        starts = np.repeat(first - (np.cumsum(sizes) - sizes), sizes)
        absent = np.repeat(missing, sizes)
        if not len(self.values):
            return torch.full((len(absent), *self.values.shape[1:]), torch.nan, dtype=torch.float64)
        out = self.values.take(np.where(absent, 0, starts + np.arange(len(starts))), axis=0)
        out[absent] = np.nan
        return torch.from_numpy(out)
