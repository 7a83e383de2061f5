"""Loading batches: gathered where they are used, or ahead of a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import CrystalBatch, GraphArrays
from datamodules.known import KnownFeatures
from datamodules.sampling import BatchedRows


def make_loader(
    graphs: GraphArrays, labels: Tensor, sampler: BatchedRows, known: KnownFeatures | None = None
) -> DataLoader[CrystalBatch]:
    """A loader of the sampler's batches, with the features of their atoms that are known already.

    Gathering a batch takes half a percent of a training step on a CPU, so there it is done in line. A GPU's step is
    short enough to wait for it.
    """
    kind = AheadLoader if torch.cuda.is_available() else DataLoader
    # Each start of a loader draws a number, which nobody uses: from its own generator, or training that goes on from
    # a checkpoint would find the global one elsewhere than training without a break.
    return kind(_Batches(graphs, labels, known), sampler=sampler, batch_size=None, generator=torch.Generator())


class AheadLoader(DataLoader[CrystalBatch]):
    """Gathers the next batch in a thread, into memory that a GPU reads by itself, while this one is worked on."""

    def __iter__(self) -> Iterator[CrystalBatch]:  # type: ignore[override]
        batches = super().__iter__()
        with ThreadPoolExecutor(1) as thread:
            following = thread.submit(_next_batch, batches)
            while (batch := following.result()) is not None:
                following = thread.submit(_next_batch, batches)
                yield batch


class _Batches(Dataset[CrystalBatch]):
    """Indexed by the rows of a whole batch, not by one crystal: gathering is vectorised."""

    def __init__(self, graphs: GraphArrays, labels: Tensor, known: KnownFeatures | None) -> None:
        self.graphs = graphs
        self.labels = labels
        self.known = known

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> CrystalBatch:
        labels = self.labels[torch.from_numpy(rows)]
        if self.known is None:
            return self.graphs.gather(rows, labels)
        gather = self.graphs.gather if self.known.needs_edges else self.graphs.gather_atoms
        batch = gather(rows, labels)
        batch.known = self.known.take(rows)
        return batch


def _next_batch(batches: Iterator[CrystalBatch]) -> CrystalBatch | None:
    batch = next(batches, None)
    if batch is not None and torch.cuda.is_available():
        batch.pin_memory()
    return batch
