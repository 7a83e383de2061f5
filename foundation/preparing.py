"""Structures read, checked and given their edges: what predicting costs beside the model.

Parsing a CIF takes longer than predicting it, so many structures are given to processes. This module is all they
import: no torch.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path

from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.graph import NeighborList, NeighborRecipe, neighbor_list
from datamodules.matching import reduced_formula
from datamodules.readers import Record, read_structures
from datamodules.validity import problem_of
from foundation.streaming import in_order

# Fewer chunks are done here before processes have started.
CHUNKS_WORTH_PROCESSES = 5

# A file to be read whole, or a record of a larger one beside the path of that file.
Item = Path | tuple[Record, str]


@dataclass(frozen=True, slots=True)
class Structure:
    """One structure, ready for the model or refused.

    Attributes:
        path: Where it was found.
        index: Position in its file, from 0.
        id: Its id.
        formula: Reduced formula; empty where there are no atoms.
        problem: None, or why it cannot be predicted.
        crystal: The crystal, where there is one.
        edges: Its edges, where there is no problem.
    """

    path: str
    index: int
    id: str
    formula: str
    problem: str | None
    crystal: Crystal | None
    edges: NeighborList | None


def prepare_all(
    items: Iterable[Item], recipe: NeighborRecipe, chunk: int, workers: int
) -> Generator[list[Structure], None, None]:
    """Prepare any number of structures in order, in constant memory.

    Args:
        items: The structures.
        recipe: The neighbour recipe.
        chunk: How many items are prepared together.
        workers: Processes to use where it pays.

    Raises:
        InputError: If a process died.
    """
    iterator = iter(items)
    chunks: Iterator[list[Item]] = iter(lambda: list(islice(iterator, chunk)), [])
    first = list(islice(chunks, CHUNKS_WORTH_PROCESSES))
    work = partial(prepare, recipe=recipe)
    if workers < 2 or len(first) < CHUNKS_WORTH_PROCESSES:
        yield from map(work, chain(first, chunks))
        return
    done = 0
    with _processes(workers) as pool:
        try:
            for prepared in in_order(pool, work, chain(first, chunks), ahead=2 * workers):
                yield prepared
                done += 1
        except BrokenProcessPool as error:
            raise InputError(
                f"a process that reads structures died, at one of the {2 * workers * chunk} inputs behind the first "
                f"{done * chunk} (is there enough memory?); predict them in smaller parts to find it"
            ) from error


def prepare(items: Iterable[Item], recipe: NeighborRecipe) -> list[Structure]:
    """Read, check and find the edges of a few structures."""
    return [_structure(record, path, recipe) for item in items for record, path in _records(item)]


def _records(item: Item) -> Iterable[tuple[Record, str]]:
    return ((record, str(item)) for record in read_structures(item)) if isinstance(item, Path) else [item]


def _structure(record: Record, path: str, recipe: NeighborRecipe) -> Structure:
    crystal = record.crystal
    if crystal is None:
        return Structure(path, record.index, record.id, "", record.problem or "unreadable", None, None)
    problem = record.problem or problem_of(crystal)
    formula = reduced_formula(crystal.numbers) if len(crystal) else ""
    edges = neighbor_list(crystal, recipe) if problem is None else None
    return Structure(path, record.index, record.id, formula, problem, crystal, edges)


@contextmanager
def _processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    # A fork of this process would copy locks that torch's threads hold. The server forks from a clean process that
    # has imported this module once for all.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _begin() -> None:
    """An interrupt is the parent's to handle, and a process does not outlive a parent that was killed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
