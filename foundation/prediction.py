"""A table of predictions: one row per structure, made chunk by chunk from files or a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from itertools import groupby
from pathlib import Path

import numpy as np

from datamodules.batching import GraphArrays, join_graphs
from datamodules.graph_cache import cached_graphs
from datamodules.readers import read_source, read_structures
from datamodules.store import CrystalStore, is_store
from foundation.columns import Columns
from foundation.encoder.elements import NUM_ELEMENTS
from foundation.preparing import Item, Structure, prepare_all
from foundation.streaming import in_order

CHUNK = {"cpu": 64, "cuda": 512}  # structures that are read, predicted and written together
READ_WHOLE = 256 * 1024  # bytes; a larger file may hold any number of structures and is read one by one
FIXED = ("path", "index", "id", "formula", "status")
PREDICTED = ("ok", "unseen_element")  # statuses that come with a prediction

Row = list[str]


def prediction_rows(columns: Columns, paths: Sequence[Path], seen: set[int]) -> Generator[list[Row], None, None]:
    """Rows of all structures in order, a chunk at a time, in constant memory.

    Args:
        columns: The model, and what is told of its predictions.
        paths: Structure files, folders of them, tables, stores.
        seen: Atomic numbers that the model has met in training.

    Raises:
        InputError: If a table or store as a whole cannot be read.
    """
    with closing(_tasks(columns, paths, seen)) as tasks, columns.ensemble.threads() as (pool, count):
        yield from in_order(pool, _call, tasks, ahead=count + 1)


def _tasks(columns: Columns, paths: Sequence[Path], seen: set[int]) -> Generator[Callable[[], list[Row]], None, None]:
    """What is left to do for each chunk once its structures are read: to predict it and make its rows."""
    ensemble = columns.ensemble
    chunk = CHUNK[ensemble.device.type]
    for stored, group in groupby(paths, key=is_store):
        if not stored:
            items = (item for path in group for item in _items(path))
            with closing(prepare_all(items, ensemble.recipe, chunk, len(os.sched_getaffinity(0)))) as prepared:
                for structures in prepared:
                    yield partial(_rows_of_structures, columns, seen, structures)
            continue
        for path in group:
            store = CrystalStore.open(path)
            graphs = cached_graphs(store, ensemble.recipe)
            for start in range(0, len(store), chunk):
                yield partial(_rows_of_store, columns, seen, store, graphs, start, min(start + chunk, len(store)))


def _call(task: Callable[[], list[Row]]) -> list[Row]:
    return task()


def _rows_of_structures(columns: Columns, seen: set[int], structures: list[Structure]) -> list[Row]:
    heads, statuses, crystals, edges = [], [], [], []
    for structure in structures:
        heads.append([structure.path, str(structure.index), structure.id, structure.formula])
        if structure.crystal is None or structure.edges is None:
            statuses.append(structure.problem or "unreadable")
            continue
        statuses.append(_status(set(structure.crystal.numbers.tolist()), seen))
        if statuses[-1] in PREDICTED:
            crystals.append(structure.crystal)
            edges.append(structure.edges)
    graphs = join_graphs(crystals, edges)
    return _rows(columns, heads, statuses, graphs, list(range(len(crystals))))


def _rows_of_store(
    columns: Columns, seen: set[int], store: CrystalStore, graphs: GraphArrays, start: int, stop: int
) -> list[Row]:
    """Rows of some crystals of a store, which were checked when they were imported."""
    ids, formulas = (store.table[name].slice(start, stop - start).to_pylist() for name in ("id", "formula"))
    rows = range(start, stop)
    heads = [[str(store.path), str(row), *names] for row, *names in zip(rows, ids, formulas, strict=True)]
    statuses = [_status(set(store.numbers[store.ptr[row] : store.ptr[row + 1]].tolist()), seen) for row in rows]
    predicted = [row for row, status in zip(rows, statuses, strict=True) if status in PREDICTED]
    return _rows(columns, heads, statuses, graphs, predicted)


def _rows(
    columns: Columns, heads: list[Row], statuses: list[str], graphs: GraphArrays, predicted: list[int]
) -> list[Row]:
    """Whole rows: what was found, its status, and values where the status allows them.

    Args:
        columns: The model, and what is told of its predictions.
        heads: Path, index, id and formula of each structure.
        statuses: Status of each as far as it is known without its edges.
        graphs: Graphs of those to be predicted, and perhaps of others.
        predicted: Where in the graphs those to be predicted stand, in their order.
    """
    values = columns.ensemble.predict_graphs(graphs, np.array(predicted, dtype=np.int64))
    places = iter(range(len(predicted)))
    width = len(columns.names)
    rows = []
    for head, status in zip(heads, statuses, strict=True):
        cells = [""] * width
        if status in PREDICTED:
            place = next(places)
            if (graphs.edges_per_atom(predicted[place]) == 0).any():
                status = "no_neighbours"
            else:
                cells = columns.cells({name: found[place] for name, found in values.items()})
        rows.append([*head, status, *cells])
    return rows


def _status(elements: set[int], seen: set[int]) -> str:
    if max(elements) > NUM_ELEMENTS:
        return "unsupported_element"
    return "ok" if elements <= seen else "unseen_element"


def _items(path: Path) -> Iterator[Item]:
    """Every structure at a path that is no store, or the small files that hold them."""
    if path.is_dir():
        for file in _files(path):
            yield from _items_of_file(file)
    elif path.name.removesuffix(".gz").endswith((".json", ".jsonl", ".csv")):
        yield from ((record, str(path)) for record in read_source(path))
    else:
        yield from _items_of_file(path)


def _items_of_file(file: Path) -> Iterator[Item]:
    if file.stat().st_size <= READ_WHOLE:
        yield file
    else:
        yield from ((record, str(file)) for record in read_structures(file))


def _files(folder: Path) -> Iterator[Path]:
    """Files below a folder, sorted, one level of names in memory at a time; hidden ones are left out."""
    for name in sorted(os.listdir(folder)):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif path.is_file() and not name.startswith("."):
            yield path
