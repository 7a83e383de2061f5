"""In which order crystals are visited, and by which process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from torch.utils.data import Sampler

Rows = npt.NDArray[np.int64]


class BatchedRows(Sampler[Rows]):
    """Batches of rows, seeded by the epoch and dealt out to the processes of a distributed run.

    Every process draws the same order from (seed, epoch) and takes its share of each global batch, so the
    global batches do not depend on the number of processes that share them.

    A batch that would cost too much takes fewer rows. So that every epoch has the same number of steps all the
    same, rows then fall into classes of cost, and each place of the order belongs to one class in all epochs:
    batches are cut once, for the costliest row of the class at each place. Where no batch can cost too much there
    is one class.

    Args:
        rows: [M] rows to visit.
        batch_size: Crystals per process and step.
        shuffle: Whether the order changes every epoch.
        seed: Seed of the order.
        weights: [M] relative chance of each row; if given, rows are drawn with replacement.
        distributed: Whether the processes of a distributed run share the rows; False gives every process all.
        costs: [M] cost of each row, if batches are bounded.
        max_cost: What a process may spend on a step; a single row may cost more.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        weights: npt.NDArray[np.float64] | None = None,
        distributed: bool = True,
        costs: npt.NDArray[np.int64] | None = None,
        max_cost: float = np.inf,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.weights = weights
        self.distributed = distributed
        self.max_cost = max_cost
        self.epoch = 0
        self._begin = (0, 0)  # epoch, and how many of its batches are passed over
        if costs is None or not self._can_exceed(costs):
            costs = np.zeros(len(rows), dtype=np.int64)
        if not shuffle:
            self._place_costs = costs
            return
        # Class 0 are rows of which a whole batch is allowed; then there is one for every factor of two.
        self._classes = np.ceil(np.log2(np.maximum(costs * batch_size / max_cost, 1))).astype(np.int64)
        first = self._draw(np.random.default_rng([seed, 0]), np.arange(len(rows)), len(rows))
        self._class_of_place = self._classes[first]
        dearest = {kind: costs[self._classes == kind].max() for kind in np.unique(self._classes)}
        self._place_costs = np.array([dearest[kind] for kind in self._class_of_place], dtype=np.int64)

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch, also after a resume."""
        self.epoch = epoch

    def go_to(self, epoch: int, batches: int) -> None:
        """Begin this epoch behind its first batches: a run that goes on has trained on them already."""
        self._begin = (epoch, batches)

    def __len__(self) -> int:
        return len(self._cuts(self._world()[1]))

    def __iter__(self) -> Iterator[Rows]:
        rank, world = self._world()
        order = self._order()
        epoch, passed = self._begin
        for start, stop in self._cuts(world)[passed if epoch == self.epoch else 0 :]:
            yield order[start:stop][rank::world]

    def _cuts(self, world: int) -> list[tuple[int, int]]:
        """Where the global batches begin and end; one round of them gives each process one row."""
        size = len(self.rows)
        if not size:
            return []
        dearest = np.maximum.reduceat(self._place_costs, np.arange(0, size, world))
        starts = starts_by_cost(dearest, self.max_cost, self.batch_size)
        # Every process must take part in every step: a tail with fewer crystals than processes joins the last.
        if len(starts) > 1 and size - starts[-1] * world < world:
            starts.pop()
        return list(pairwise([*(start * world for start in starts), size]))

    def _world(self) -> tuple[int, int]:
        if self.distributed and dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    def _order(self) -> Rows:
        if not self.shuffle:
            return self.rows
        generator = np.random.default_rng([self.seed, self.epoch])
        order = np.empty_like(self.rows)
        for kind in np.unique(self._class_of_place):
            places = np.flatnonzero(self._class_of_place == kind)
            order[places] = self.rows[self._draw(generator, np.flatnonzero(self._classes == kind), len(places))]
        return order

    def _draw(self, generator: np.random.Generator, members: Rows, count: int) -> Rows:
        """As many of the members as asked for: all of them shuffled, or some by weight."""
        if self.weights is None:
            return generator.permutation(members)
        weights = self.weights[members]
        return generator.choice(members, size=count, p=weights / weights.sum())

    def _can_exceed(self, costs: npt.NDArray[np.int64]) -> bool:
        """Whether any batch can cost too much."""
        dearest = np.sort(costs)[-self.batch_size :]
        if self.weights is not None:  # the dearest may be drawn again and again
            dearest = np.repeat(dearest[-1:], self.batch_size)
        return bool(dearest.sum() > self.max_cost)


def starts_by_cost(costs: npt.NDArray[np.int64], max_cost: float, max_count: float = np.inf) -> list[int]:
    """Where batches begin that are filled one after another.

    Args:
        costs: [M] cost of each item, in order.
        max_cost: What a batch may cost; a single item may cost more.
        max_count: How many items a batch may hold.
    """
    starts, cost = [0], 0
    for number, spent in enumerate(costs.tolist()):
        full = number - starts[-1] == max_count or cost + spent > max_cost
        if full and number > starts[-1]:
            starts.append(number)
            cost = 0
        cost += spent
    return starts


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
