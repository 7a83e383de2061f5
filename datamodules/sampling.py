"""In which order crystals are visited, and by which process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch.distributed as dist
from torch.utils.data import Sampler

from datamodules.blocks import blocks
from datamodules.dealing import Work
from datamodules.memory import give_back_memory

Rows = npt.NDArray[np.int64]

_MANY = 100_000  # rows whose order takes memory that is worth giving back


class BatchedRows(Sampler[Rows]):
    """Batches of rows, seeded by the epoch and dealt out to the processes of a distributed run.

    Every process draws the same order from (seed, epoch) and takes its share of each global batch, so the
    global batches do not depend on the number of processes that share them. Shares are of equal work, not of equal
    count (``datamodules.dealing``).

    A batch that would cost too much takes fewer rows. So that every epoch has the same number of steps all the
    same, rows then fall into classes of cost, and each place of the order belongs to one class in all epochs:
    batches are cut once, for the costliest row of the class at each place. Where no batch can cost too much there
    is one class.

    Beside the rows, 2 bytes of each are kept for its class and 1 or 2 for its weight, where there are such, and 4
    for its place while an epoch lasts: 8 to 16 in all.

    Args:
        rows: [M] rows to visit.
        batch_size: Crystals per process and step, in the mean over the processes.
        shuffle: Whether the order changes every epoch.
        seed: Seed of the order.
        weights: [M] relative chance of each row; if given, rows are drawn with replacement.
        distributed: Whether the processes of a distributed run share the rows; False gives every process all.
        costs: [M] cost of each row, if batches are bounded.
        max_cost: What a process may spend on a step; a single row may cost more.

    Attributes:
        work: What makes shares equal; None deals out one row to each process in turn.
    """

    def __init__(
        self,
        rows: Rows,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        weights: npt.NDArray[np.floating] | None = None,
        distributed: bool = True,
        costs: npt.NDArray[np.integer] | None = None,
        max_cost: float = np.inf,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self._weights = None if weights is None else _Coded.of(weights.astype(np.float32, copy=False))
        self.distributed = distributed
        self.max_cost = max_cost
        self.epoch = 0
        self._begin = (0, 0)  # epoch, and how many of its batches are passed over
        self.work: Work | None = None
        self._cuts_of: dict[int, Rows] = {}
        self._one_class = costs is None or not self._can_exceed(costs)
        if costs is None or self._one_class:
            return
        self._costs = costs
        if not shuffle:
            return
        # Class 0 are rows of which a whole batch is allowed; then there is one for every factor of two.
        self._classes = np.empty(len(rows), dtype=np.uint8)
        for block in blocks(len(rows)):
            share = costs[block].astype(np.float64) * batch_size / max_cost
            self._classes[block] = np.ceil(np.log2(np.maximum(share, 1)))
        kinds = np.arange(self._classes.max() + 1)
        self._costs = np.array([costs[self._classes == kind].max(initial=0) for kind in kinds])  # of the dearest
        self._class_of_place = _draw(np.random.default_rng([seed, 0]), self._classes, self._chances(), len(rows))

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
        order, cuts = self._order(), self._cuts(world)
        if len(order) >= _MANY:
            give_back_memory()  # what drawing and cutting took, several times what is kept
        epoch, passed = self._begin
        for start, stop in cuts[passed if epoch == self.epoch else 0 :]:
            yield self._share(order[start:stop].astype(np.int64), rank, world)

    def _share(self, batch: Rows, rank: int, world: int) -> Rows:
        if world == 1:
            return batch
        return batch[rank::world] if self.work is None else self.work.deal(batch, world)[rank]

    def _cuts(self, world: int) -> Rows:
        """[K, 2] where the global batches begin and end; one round of them gives each process one row."""
        if world not in self._cuts_of:
            self._cuts_of[world] = self._cut(world)
        return self._cuts_of[world]

    def _cut(self, world: int) -> Rows:
        size = len(self.rows)
        if not size:
            return np.zeros((0, 2), dtype=np.int64)
        if self._one_class:
            starts = list(range(0, -(-size // world), self.batch_size))
        else:
            starts = starts_by_cost(self._dearest(world), self.max_cost, self.batch_size)
        # Every process must take part in every step: a tail with fewer crystals than processes joins the last.
        if len(starts) > 1 and size - starts[-1] * world < world:
            starts.pop()
        edges = np.array([*(start * world for start in starts), size])
        return np.stack([edges[:-1], edges[1:]], axis=1)

    def _dearest(self, world: int) -> npt.NDArray[np.integer]:
        """The most that a row costs, of each round of one row for each process."""
        dearest = np.empty(-(-len(self.rows) // world), dtype=self._costs.dtype)
        for block in blocks(len(dearest)):
            places = slice(block.start * world, block.stop * world)
            costs = self._costs[self._class_of_place[places]] if self.shuffle else self._costs[places]
            dearest[block] = np.maximum.reduceat(costs, np.arange(0, len(costs), world))
        return dearest

    def _world(self) -> tuple[int, int]:
        if self.distributed and dist.is_available() and dist.is_initialized():
            return dist.get_rank(), dist.get_world_size()
        return 0, 1

    @property
    def nbytes(self) -> int:
        """What is held of all rows, while an epoch lasts; the rows themselves may be a mapped file."""
        held = [value for value in vars(self).values() if isinstance(value, np.ndarray)]
        held += [] if self._weights is None else [self._weights.codes]
        return sum(array.nbytes for array in [*held, self._order()])

    def _order(self) -> npt.NDArray[np.integer]:
        rows = self.rows.astype(np.int32) if self.rows.max(initial=0) < 2**31 else self.rows
        if not self.shuffle:
            return rows
        generator = np.random.default_rng([self.seed, self.epoch])
        if self._one_class:
            return _draw(generator, rows, self._chances(), len(rows))
        order = np.empty_like(rows)
        for kind in range(len(self._costs)):
            places, members = self._class_of_place == kind, self._classes == kind
            order[places] = _draw(generator, rows[members], self._chances(members), int(places.sum()))
        return order

    def _chances(self, chosen: npt.NDArray[np.bool_] | slice = slice(None)) -> npt.NDArray[np.float64] | None:
        return None if self._weights is None else self._weights.values.astype(np.float64)[self._weights.codes[chosen]]

    def _can_exceed(self, costs: npt.NDArray[np.integer]) -> bool:
        """Whether any batch can cost too much."""
        dearest = np.partition(costs, -min(self.batch_size, len(costs)))[-self.batch_size :] if len(costs) else costs
        if self._weights is not None:  # the dearest may be drawn again and again
            dearest = np.repeat(dearest.max(initial=0), self.batch_size)
        return bool(dearest.sum() > self.max_cost)


class _Coded(NamedTuple):
    """Numbers of which few are different, as a row's weight depends on nothing but which labels it has.

    Attributes:
        values: The different ones.
        codes: [M] place of each number among them, in as few bytes as there are places.
    """

    values: npt.NDArray[np.float32]
    codes: npt.NDArray[np.unsignedinteger]

    @classmethod
    def of(cls, numbers: npt.NDArray[np.float32]) -> _Coded:
        values = np.unique(
            np.concatenate([numbers[:0], *(np.unique(numbers[block]) for block in blocks(len(numbers)))])
        )
        codes = np.empty(len(numbers), dtype=np.min_scalar_type(max(len(values) - 1, 0)))
        for block in blocks(len(numbers)):
            codes[block] = values.searchsorted(numbers[block])
        return cls(values, codes)


def starts_by_cost(costs: npt.NDArray[np.integer], max_cost: float, max_count: float = np.inf) -> list[int]:
    """Where batches begin that are filled one after another.

    Args:
        costs: [M] cost of each item, in order.
        max_cost: What a batch may cost; a single item may cost more.
        max_count: How many items a batch may hold.
    """
    spent = np.zeros(len(costs) + 1, dtype=np.int64)
    np.cumsum(costs, out=spent[1:])
    starts = [0]
    while True:
        start = starts[-1]
        affordable = int(np.searchsorted(spent, spent[start] + max_cost, side="right")) - 1
        stop = int(min(max(affordable, start + 1), start + max_count))
        if stop >= len(costs):
            return starts
        starts.append(stop)


def _draw(
    generator: np.random.Generator, values: npt.NDArray[Any], weights: npt.NDArray[np.float64] | None, count: int
) -> npt.NDArray[Any]:
    """As many of the values as asked for: all of them shuffled, or some by weight.

    The weights are added up in place.
    """
    if weights is None:
        shuffled = values.copy()
        generator.shuffle(shuffled)
        return shuffled
    if not count:  # of a class of costs that no row is in
        return values[:0]
    chance = np.cumsum(weights, out=weights)
    chance /= chance[-1]
    drawn = np.empty(count, dtype=values.dtype)
    for block in blocks(count):
        drawn[block] = values[chance.searchsorted(generator.random(block.stop - block.start), side="right")]
    return drawn


def temperature_weights(labels: npt.NDArray[np.floating], rows: Rows, temperature: float) -> npt.NDArray[np.float32]:
    """Chance of each crystal when a property is drawn first, then one of its crystals.

    Property p is drawn in proportion to n_p^(1/temperature) for n_p labels: 1 keeps the sizes of the sets, a
    large temperature gives every property the same share of the crystals drawn.

    Args:
        labels: [M, P] labels of all crystals, NaN where missing.
        rows: [K] crystals to draw from.
        temperature: At least 1.

    Returns:
        [K] weights that sum to 1.
    """
    counts = np.zeros(labels.shape[1])
    for block in blocks(len(rows)):
        counts += (~np.isnan(labels[rows[block]])).sum(axis=0)
    shares = np.where(counts > 0, np.maximum(counts, 1.0) ** (1.0 / temperature), 0.0)
    shares /= shares.sum()
    weights = np.empty(len(rows), dtype=np.float32)
    for block in blocks(len(rows)):
        summed = np.zeros(block.stop - block.start)
        for values, weight in zip(labels[rows[block]].T, shares / np.maximum(counts, 1.0), strict=True):
            summed += np.where(np.isnan(values), 0.0, weight)
        weights[block] = summed
    return weights
