"""`foundation predict`: one row per structure, whatever became of it."""

from __future__ import annotations

import csv
import glob
import os
import sys
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from datamodules.errors import InputError
from foundation.commands.parsing import OneLineParser


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(prog="foundation predict", description="Predict files, folders, globs of files, or a store.")
    made.add_argument("checkpoint", help="a .ckpt file, a run's folder (all seeds of it), or a shipped encoder")
    made.add_argument("paths", nargs="+", metavar="PATH", help="CIF, POSCAR, extxyz, ..., folders, globs, a store")
    made.add_argument(
        "--tensor-format",
        dest="tensor_format",
        default="full",
        choices=("full", "voigt"),
        help="tensors in full, or in Voigt notation: xx, yy, zz, yz, xz, xy, without factors",
    )
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
    from foundation.columns import Columns
    from foundation.inference import Ensemble
    from foundation.prediction import FIXED, PREDICTED, prediction_rows

    paths = _expand(args.paths)
    checkpoints = [load_checkpoint(member) for member in find_members(args.checkpoint)]
    columns = Columns(Ensemble([checkpoint.build() for checkpoint in checkpoints]), args.tensor_format)
    if args.tensor_format == "voigt" and columns.never_voigt:
        print(f"no Voigt notation, written in full: {', '.join(columns.never_voigt)}", file=sys.stderr)
    seen = {z for checkpoint in checkpoints for z in checkpoint.elements_seen}
    out = Path(args.out)
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.parent}")
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    counts: dict[str, int] = {}
    try:
        with (
            temporary.open("w", newline="") as file,
            closing(prediction_rows(columns, paths, seen)) as chunks,
            tqdm(desc="predict", unit=" crystals", disable=None, delay=2) as bar,
        ):
            writer = csv.writer(file)
            writer.writerow([*FIXED, *columns.names])
            for rows in chunks:
                writer.writerows(rows)
                bar.update(len(rows))
                for row in rows:
                    counts[row[4]] = counts.get(row[4], 0) + 1
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    print(
        f"{out}: {', '.join(f'{count} {status}' for status, count in sorted(counts.items())) or 'no structure found'}"
    )
    return 0 if any(status in counts for status in PREDICTED) else 1


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
