"""In which order crystals are visited, and by which process."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from torch.utils.data import Sampler

Rows = npt.NDArray[np.int64]


class BatchedRows(Sampler[Rows]):
    """Batches of rows, seeded by the epoch and dealt out to the processes of a distributed run.

    Every process draws the same order from (seed, epoch) and takes its share of each global batch, so the
    global batches do not depend on the number of processes that share them.

    Args:
        rows: [M] rows to visit.
        batch_size: Crystals per process and step.
        shuffle: Whether the order changes every epoch.
        seed: Seed of the order.
        weights: [M] relative chance of each row; if given, rows are drawn with replacement.
        distributed: Whether the processes of a distributed run share the rows; False gives every process all.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        weights: npt.NDArray[np.float64] | None = None,
        distributed: bool = True,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.weights = weights
        self.distributed = distributed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also after a resume."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._cuts(self._world()[1]))

    def __iter__(self) -> Iterator[Rows]:
        rank, world = self._world()
        order = self._order()
        for start, stop in self._cuts(world):
            yield order[start:stop][rank::world]

    def _cuts(self, world: int) -> list[tuple[int, int]]:
        step = self.batch_size * world
        cuts = [(start, min(start + step, len(self.rows))) for start in range(0, len(self.rows), step)]
        # Every process must take part in every step: a tail with fewer crystals than processes joins the last.
        if len(cuts) > 1 and cuts[-1][1] - cuts[-1][0] < world:
            cuts[-2:] = [(cuts[-2][0], cuts[-1][1])]
        return cuts

    def _world(self) -> tuple[int, int]:
        if self.distributed and dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def _order(self) -> Rows:
        if not self.shuffle:
            return self.rows
        generator = np.random.default_rng([self.seed, self.epoch])
        if self.weights is None:
            return generator.permutation(self.rows)
        return generator.choice(self.rows, size=len(self.rows), p=self.weights / self.weights.sum())


def temperature_weights(labelled: npt.NDArray[np.bool_], temperature: float) -> npt.NDArray[np.float64]:
    """Chance of each crystal when a property is drawn first, then one of its crystals.

    Property p is drawn in proportion to n_p^(1/temperature) for n_p labels: 1 keeps the sizes of the sets, a
    large temperature gives every property the same share of the crystals drawn.

    Args:
        labelled: [M, P] which crystal has which label.
        temperature: At least 1.

    Returns:
        [M] weights that sum to 1.
    """
    counts = labelled.sum(axis=0).astype(np.float64)
    shares = np.where(counts > 0, np.maximum(counts, 1.0) ** (1.0 / temperature), 0.0)
    shares /= shares.sum()
    weights: npt.NDArray[np.float64] = (labelled * (shares / np.maximum(counts, 1.0))).sum(axis=1)
    return weights
