"""Loading batches: gathered where they are used, or ahead of a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datamodules.batching import CrystalBatch, GraphArrays
from datamodules.known import KnownFeatures
from datamodules.sampling import BatchedRows
from datamodules.shaped import ShapedLabels

Shaped = Mapping[str, tuple[int, ShapedLabels]]  # property -> its column in the table of labels, and its labels


def make_loader(
    graphs: GraphArrays,
    labels: Tensor,
    sampler: BatchedRows,
    known: KnownFeatures | None = None,
    shaped: Shaped | None = None,
) -> DataLoader[CrystalBatch]:
    """A loader of the sampler's batches, with the features of their atoms that are known already.

    Gathering a batch takes half a percent of a training step on a CPU, so there it is done in line. A GPU's step is
    short enough to wait for it.
    """
    kind = AheadLoader if torch.cuda.is_available() else DataLoader
    # Each start of a loader draws a number, which nobody uses: from its own generator, or training that goes on from
    # a checkpoint would find the global one elsewhere than training without a break.
    batches = _Batches(graphs, labels, known, shaped or {})
    return kind(batches, sampler=sampler, batch_size=None, generator=torch.Generator())


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

    def __init__(self, graphs: GraphArrays, labels: Tensor, known: KnownFeatures | None, shaped: Shaped) -> None:
        self.graphs = graphs
        self.shaped = shaped
        self.labels = labels
        self.known = known

    def __getitem__(self, rows: npt.NDArray[np.int64]) -> CrystalBatch:
        labels = self.labels[torch.from_numpy(rows)]
        edges = self.known is None or self.known.needs_edges
        batch = (self.graphs.gather if edges else self.graphs.gather_atoms)(rows, labels)
        if self.known is not None:
            batch.known = self.known.take(rows)
        if self.shaped:
            counts = ~torch.isnan(labels).numpy()
            batch.shaped = {
                name: found.gather(rows, counts[:, column]).to(labels.dtype)
                for name, (column, found) in self.shaped.items()
            }
        return batch


def _next_batch(batches: Iterator[CrystalBatch]) -> CrystalBatch | None:
    batch = next(batches, None)
    if batch is not None and torch.cuda.is_available():
        batch.pin_memory()
    return batch
