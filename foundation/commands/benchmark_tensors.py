"""`foundation benchmark tensors`: what pretraining is worth for tensors, spectra and labels of atoms."""

from __future__ import annotations

import argparse
from pathlib import Path

from foundation.commands.parsing import OneLineParser


def tensors_parser() -> OneLineParser:
    """The options of ``foundation benchmark tensors``."""
    from foundation.benchmarks.tensors import QUANTITIES, SIZES

    made = OneLineParser(
        prog="foundation benchmark tensors",
        description="Errors of tensors, spectra and labels of atoms, learned from mp-small and from scratch, on 100 "
        "and on all crystals of one split by formula, beside scalar heads and guesses. Every run is kept in "
        "DIR/runs: a benchmark that was stopped goes on where it was.",
    )
    made.set_defaults(work=_tensors, device="cpu")
    made.add_argument("--out", required=True, metavar="DIR", help="folder for stores, runs and results.csv")
    made.add_argument(
        "--data", metavar="DIR", help="folder of data sets; by default $FOUNDATION_DATA or ../shared/data"
    )
    made.add_argument(
        "--quantities", nargs="+", choices=tuple(QUANTITIES), default=tuple(QUANTITIES), help="by default all"
    )
    made.add_argument("--sizes", nargs="+", choices=SIZES, default=SIZES, help="crystals that train (%(default)s)")
    made.add_argument("--seeds", type=int, default=2, help="seeds of weights and order (%(default)s)")
    return made


def _tensors(args: argparse.Namespace) -> int:
    from datamodules.errors import InputError
    from foundation.benchmarks.tensors import compare_tensors, summary
    from foundation.commands.benchmark import data_folder
    from foundation.commands.report import number, print_table

    data = (Path(args.data) if args.data else data_folder()).absolute()
    if not data.is_dir():
        raise InputError(f"{data}: no such folder; name the folder of data sets with --data")
    found = summary(compare_tensors(Path(args.out).absolute(), data, args.quantities, args.sizes, max(1, args.seeds)))
    rows = [[*row[:2], *(number(value) for value in row[2:])] for row in found.itertuples(index=False)]
    print_table("test errors, means over seeds", list(found.columns), rows)
    return 0
