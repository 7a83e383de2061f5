"""Predict structure files with the model of this folder. Needs torch, numpy and pymatgen, nothing else.

    python predict.py candidates/*.cif --out predictions.csv

PATHs are CIF and POSCAR files (.gz allowed) and folders of them. The table has a row per structure, with
predictions in the units that stand in its heading and a status: "ok"; "unseen_element", predicted, but no
crystal that the model was trained on holds one of its elements; without a prediction "no_neighbours" (an atom
alone within the cutoff), "unsupported_element", "unreadable", "disordered", "overlapping_atoms" and the like.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
import torch

from datamodules.crystals import Crystal, as_crystal
from datamodules.graph import NeighborList, NeighborRecipe, neighbor_list
from datamodules.readers.cif import cif_blocks, crystal_of_cif
from datamodules.validity import problem_of

EDGES_PER_BATCH = 2_000  # a batch is fastest while it stays in the processor's caches

Program = Callable[..., dict[str, torch.Tensor]]
Graph = tuple[Crystal, NeighborList]


def load_program(folder: Path) -> tuple[Program, dict[str, Any]]:
    """The compiled model of a package and its card."""
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    path = str(folder / card["program"]["file"])
    if card["program"]["format"] == "aot_inductor":
        from torch._inductor import aoti_load_package

        return aoti_load_package(path), card
    return torch.export.load(path).module(), card


def program_inputs(graphs: Sequence[Graph]) -> tuple[torch.Tensor, ...]:
    """What the program takes, for B crystals with N atoms and E edges in all.

    Returns:
        Atomic numbers [N], crystal of each atom [N], atoms per crystal [B], volumes of the cells [B] in Angstrom^3,
        sender and receiver [2, E], vectors from receiver to sender [E, 3] in Angstrom, and cutoffs [N] in Angstrom.
    """
    sizes = [len(crystal) for crystal, _ in graphs]
    first = np.cumsum(sizes) - sizes
    ends, vectors = [], []
    for (crystal, edges), start in zip(graphs, first, strict=True):
        ends.append(np.stack([edges.sender, edges.receiver]).astype(np.int64) + start)
        difference = crystal.frac_coords[edges.sender] + edges.shift - crystal.frac_coords[edges.receiver]
        vectors.append(difference @ crystal.lattice)
    return (
        torch.from_numpy(np.concatenate([crystal.numbers for crystal, _ in graphs]).astype(np.int64)),
        torch.from_numpy(np.repeat(np.arange(len(graphs)), sizes)),
        torch.tensor(sizes, dtype=torch.int64),
        torch.tensor([crystal.volume for crystal, _ in graphs], dtype=torch.float64),
        torch.from_numpy(np.concatenate(ends, axis=1)),
        torch.from_numpy(np.concatenate(vectors)).to(torch.float32),
        torch.from_numpy(np.concatenate([edges.cutoff for _, edges in graphs])).to(torch.float32),
    )


def rows(program: Program, card: dict[str, Any], paths: Sequence[Path]) -> Iterator[list[str]]:
    """Rows of the table below its heading, in order, with a bounded number of edges at a time."""
    recipe = NeighborRecipe(**card["neighbors"])
    waiting: list[tuple[list[str], Graph | None]] = []
    num_edges = 0
    for file, index, crystal, problem in chain.from_iterable(map(read, paths)):
        status, graph = problem or "ok", None
        if crystal is not None:
            status, graph = _judge(crystal, recipe, card["elements"])
        waiting.append(([str(file), str(index), status], graph))
        num_edges += len(graph[1].sender) if graph else 0
        if num_edges >= EDGES_PER_BATCH:
            yield from _predicted(program, card, waiting)
            waiting, num_edges = [], 0
    yield from _predicted(program, card, waiting)


def _judge(crystal: Crystal, recipe: NeighborRecipe, elements: dict[str, Any]) -> tuple[str, Graph | None]:
    """Status of a crystal, and its graph where there is something to predict."""
    problem = problem_of(crystal)
    if problem is not None:
        return problem, None
    if crystal.numbers.max() > elements["last"]:
        return "unsupported_element", None
    edges = neighbor_list(crystal, recipe)
    if (np.bincount(edges.receiver, minlength=len(crystal)) == 0).any():
        return "no_neighbours", None
    seen = set(crystal.numbers.tolist()) <= set(elements["seen"])
    return "ok" if seen else "unseen_element", (crystal, edges)


def _predicted(
    program: Program, card: dict[str, Any], waiting: Sequence[tuple[list[str], Graph | None]]
) -> Iterator[list[str]]:
    graphs = [graph for _, graph in waiting if graph is not None]
    table: Iterator[list[str]] = iter(())
    if graphs:
        with torch.no_grad():
            outputs = program(*program_inputs(graphs))
        columns = [outputs[column].tolist() for column in card["program"]["outputs"]]
        table = ([f"{value:.6g}" for value in row] for row in zip(*columns, strict=True))
    for row, graph in waiting:
        yield [*row, *([""] * len(card["program"]["outputs"]) if graph is None else next(table))]


def read(path: Path) -> Iterator[tuple[Path, int, Crystal | None, str | None]]:
    """File, number in it, and either the crystal or the problem, for every structure at a path."""
    if path.is_dir():
        for file in sorted(path.rglob("*")):
            if file.is_file() and (_is_cif(file) or _is_poscar(file)):
                yield from read(file)
        return
    try:
        content = path.read_bytes()
        text = (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8", errors="replace")
    except (OSError, EOFError, zlib.error):
        yield path, 0, None, "unreadable"
        return
    for index, part in enumerate(cif_blocks(io.StringIO(text)) if _is_cif(path) else [text]):
        try:
            yield path, index, crystal_of_cif(part) if _is_cif(path) else _crystal_of_poscar(part), None
        except Exception as error:  # parsers raise whatever they meet in a bad file: that is the finding
            yield path, index, None, "disordered" if str(error) == "disordered" else "unreadable"


def _is_cif(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith((".cif", ".mcif"))


def _is_poscar(path: Path) -> bool:
    name = path.name.lower().removesuffix(".gz")
    return name.endswith((".vasp", ".poscar", ".contcar")) or name.startswith(("poscar", "contcar"))


def _crystal_of_poscar(text: str) -> Crystal:
    from pymatgen.io.vasp import Poscar

    return as_crystal(Poscar.from_str(text).structure)


def main() -> int:
    """Write the table; 0, or 1 if nothing could be predicted, or 2 for a mistake in what was given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="CIF and POSCAR files, and folders of them")
    parser.add_argument("--out", type=Path, default=Path("predictions.csv"), help="CSV file to write")
    args = parser.parse_args()
    if missing := next((path for path in args.paths if not path.exists()), None):
        parser.error(f"{missing}: no such file or folder")
    if not args.out.parent.is_dir():
        parser.error(f"--out {args.out}: there is no folder {args.out.parent}")
    program, card = load_program(Path(__file__).resolve().parent)
    temporary = args.out.with_name(f".{args.out.name}.{os.getpid()}")
    counts: dict[str, int] = {}
    try:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "index", "status", *card["program"]["outputs"]])
            for row in rows(program, card, args.paths):
                writer.writerow(row)
                counts[row[2]] = counts.get(row[2], 0) + 1
        os.replace(temporary, args.out)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{args.out}: {', '.join(f'{count} {status}' for status, count in sorted(counts.items())) or 'no structure'}")
    return 0 if counts.get("ok", 0) + counts.get("unseen_element", 0) else 1


if __name__ == "__main__":
    sys.exit(main())
