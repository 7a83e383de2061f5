"""`foundation predict`: one row per structure, whatever became of it."""

from __future__ import annotations

import csv
import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from datamodules.errors import InputError
from foundation.commands.parsing import OneLineParser

if TYPE_CHECKING:
    from datamodules.crystals import Crystal
    from datamodules.readers.record import Record
    from foundation.inference import Ensemble

CHUNK = 64  # structures that are read, predicted and written together

Row = list[str]


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(prog="foundation predict", description="Predict files, folders, globs of files, or a store.")
    made.add_argument("checkpoint", help="a .ckpt file, a run's folder (all seeds of it), or a shipped encoder")
    made.add_argument("paths", nargs="+", metavar="PATH", help="CIF, POSCAR, extxyz, ..., folders, globs, a store")
    made.add_argument("--out", default="predictions.csv", help="CSV file to write")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command.

    Returns:
        0, or 1 if no row succeeded.
    """
    args = parser().parse_args(words)
    from tqdm import tqdm

    from foundation.checkpoint import find_members, load_checkpoint
    from foundation.inference import Ensemble

    paths = _expand(args.paths)
    checkpoints = [load_checkpoint(member) for member in find_members(args.checkpoint)]
    ensemble = Ensemble([checkpoint.build() for checkpoint in checkpoints])
    seen = {z for checkpoint in checkpoints for z in checkpoint.elements_seen}
    out = Path(args.out)
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    counts: dict[str, int] = {}
    try:
        with temporary.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "index", "id", "formula", "status", *_columns(ensemble)])
            records = (record for path in paths for record in _records(path))
            with tqdm(desc="predict", unit=" crystals", disable=None, delay=2) as bar:
                while chunk := list(islice(records, CHUNK)):
                    for row in _predict_chunk(ensemble, chunk, seen):
                        writer.writerow(row)
                        counts[row[4]] = counts.get(row[4], 0) + 1
                    bar.update(len(chunk))
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    print(
        f"{out}: {', '.join(f'{count} {status}' for status, count in sorted(counts.items())) or 'no structure found'}"
    )
    return 0 if counts.get("ok", 0) + counts.get("unseen_element", 0) else 1


def _columns(ensemble: Ensemble) -> list[str]:
    columns: list[str] = []
    for name in ensemble.names:
        column = ensemble.properties[name].column
        columns.append(column)
        if len(ensemble) > 1:
            columns.append(f"{column} spread")
    return columns


def _predict_chunk(ensemble: Ensemble, chunk: list[tuple[Record, str]], seen: set[int]) -> Iterator[Row]:
    from datamodules.batching import build_graphs

    crystals: list[Crystal] = []
    place: dict[int, int] = {}
    statuses = []
    for number, (record, _) in enumerate(chunk):
        status = _status(record, seen)
        statuses.append(status)
        if status in ("ok", "unseen_element") and record.crystal is not None:
            place[number] = len(crystals)
            crystals.append(record.crystal)
    graphs = build_graphs(crystals, ensemble.recipe)
    alone = [(graphs.edges_per_atom(row) == 0).any() for row in range(len(crystals))]
    predicted = ensemble.predict(graphs.gather(rows) for rows in _batches(graphs.num_edges))
    width = len(_columns(ensemble))
    for number, (record, path) in enumerate(chunk):
        values = [""] * width
        status = statuses[number]
        if number in place:
            row = place[number]
            if alone[row]:
                status = "no_neighbours"
            else:
                values = _values(ensemble, {name: predicted[name][row] for name in ensemble.names})
        yield [path, str(record.index), record.id, _formula(record), status, *values]


def _batches(num_edges: Iterable[int]) -> Iterator[list[int]]:
    """Rows cut into batches of bounded cost, so that large cells do not exhaust the memory."""
    batch: list[int] = []
    cost = 0
    for row, edges in enumerate(num_edges):
        if batch and cost + edges > 100_000:
            yield batch
            batch, cost = [], 0
        batch.append(row)
        cost += int(edges)
    if batch:
        yield batch


def _values(ensemble: Ensemble, predicted: dict[str, object]) -> list[str]:
    import numpy as np

    values = []
    for name in ensemble.names:
        members = np.asarray(predicted[name], dtype=np.float64)
        values.append(f"{members.mean():.6g}")
        if len(ensemble) > 1:
            values.append(f"{members.std(ddof=1):.3g}")
    return values


def _status(record: Record, seen: set[int]) -> str:
    from datamodules.validity import problem_of
    from foundation.encoder.elements import NUM_ELEMENTS

    if record.crystal is None:
        return record.problem or "unreadable"
    problem = record.problem or problem_of(record.crystal)
    if problem is not None:
        return problem
    elements = set(record.crystal.numbers.tolist())
    if max(elements) > NUM_ELEMENTS:
        return "unsupported_element"
    return "ok" if elements <= seen else "unseen_element"


def _formula(record: Record) -> str:
    from datamodules.matching import reduced_formula

    return reduced_formula(record.crystal.numbers) if record.crystal is not None and len(record.crystal) else ""


def _expand(given: Sequence[str]) -> list[Path]:
    paths: list[Path] = []
    for text in given:
        found = (
            [Path(text)] if Path(text).exists() else [Path(match) for match in sorted(glob.glob(text, recursive=True))]
        )
        if not found:
            raise InputError(f"{text}: no such file, folder or store, and no match as a glob")
        paths += found
    return paths


def _records(path: Path) -> Iterator[tuple[Record, str]]:
    """Every structure at a path, beside the path that its row shows."""
    from datamodules.readers import read_source
    from datamodules.readers.record import Record
    from datamodules.readers.structure_files import read_structures
    from datamodules.store import CrystalStore, is_store

    if path.is_dir() and is_store(path):
        store = CrystalStore.open(path)
        for row in range(len(store)):
            yield Record(path.name, row, store.ids[row], store.crystal(row), {}, {}, None), str(path)
    elif path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not file.name.startswith("."))
        for file in files:
            yield from ((record, str(file)) for record in read_structures(file))
    elif path.name.removesuffix(".gz").endswith((".json", ".jsonl", ".csv")):
        yield from ((record, str(path)) for record in read_source(path))
    else:
        yield from ((record, str(path)) for record in read_structures(path))
