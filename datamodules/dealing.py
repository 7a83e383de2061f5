"""How a global batch is dealt out to the processes of a distributed run, so that none waits long for another."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from datamodules.batching import GraphArrays
from datamodules.blocks import blocks

Rows = npt.NDArray[np.int64]

# What an atom and an edge add to a training step: between two fits, 2.2 and 5.2 (LOG.md, 2026-11-26). Whole numbers
# add up to the same on every machine.
ATOM, EDGE = 4, 1


class Work:
    """What crystals cost, looked up in the graphs of their store.

    Args:
        graphs: The graphs.
        max_edges: What a process can hold at once, in edges.
    """

    def __init__(self, graphs: GraphArrays, max_edges: float = np.inf) -> None:
        self.graphs = graphs
        self.max_edges = max_edges

    def of(self, rows: Rows) -> Rows:
        """[K] work of crystals, in units of an edge."""
        return ATOM * _lengths(self.graphs.atom_ptr, rows) + EDGE * _lengths(self.graphs.edge_ptr, rows)

    def deal(self, rows: Rows, world: int) -> list[Rows]:
        """Every process's share of a global batch, in the order of the batch.

        Args:
            rows: [K] the batch.
            world: How many processes; where there are no more than rows, each gets one at least.
        """
        shares = equal_shares(self.of(rows), world)
        edges = _lengths(self.graphs.edge_ptr, rows)
        if max(int(edges[share].sum()) for share in shares) > self.max_edges:
            shares = shares_by_rounds(edges, world)
        return [rows[share] for share in shares]


def equal_shares(work: Rows, world: int) -> list[Rows]:
    """Shares of about the same work: the dearest first, each to whoever has least (Graham, 1969).

    Args:
        work: [K] of each item.
        world: How many shares.

    Returns:
        Ascending places of the items of each share.
    """
    shares: list[list[int]] = [[] for _ in range(world)]
    loads = [(0, share) for share in range(world)]
    costs = work.tolist()
    for place in np.argsort(-work, kind="stable").tolist():
        load, share = loads[0]
        shares[share].append(place)
        heapq.heapreplace(loads, (load + max(1, costs[place]), share))
    return [np.sort(np.array(share, dtype=np.int64)) for share in shares]


def shares_by_rounds(cost: Rows, world: int) -> list[Rows]:
    """Shares of one item from every round of items of like cost.

    However the items are put into rounds of one for each share, no share costs more than the dearest of all rounds
    together, which is what bounded batches are cut by.
    """
    order = np.argsort(-cost, kind="stable")
    return [np.sort(order[share::world]) for share in range(world)]


def edge_counts(graphs: GraphArrays, rows: Rows) -> npt.NDArray[np.int32]:
    """[K] edges of crystals."""
    counts = np.empty(len(rows), dtype=np.int32)
    for block in blocks(len(rows)):
        counts[block] = _lengths(graphs.edge_ptr, rows[block])
    return counts


def _lengths(ptr: npt.NDArray[np.int64], rows: Rows) -> Rows:
    lengths: Rows = ptr[rows + 1] - ptr[rows]
    return lengths
