"""`foundation benchmark`: how fast this machine trains, predicts and builds graphs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from foundation.commands.parsing import OneLineParser


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(prog="foundation benchmark", description="Rates of training, predicting and building graphs.")
    made.add_argument("--out", help="JSON file to write the results to")
    made.add_argument(
        "--data",
        help="JSON-lines file of crystals; by default mp_crysxpp under $FOUNDATION_DATA or ../shared/data, else "
        "crystals that ship",
    )
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    args = parser().parse_args(words)
    from datamodules.errors import InputError
    from foundation.benchmark import run_benchmark
    from foundation.commands.report import number, print_table
    from foundation.files import write_json

    if args.data and not Path(args.data).is_file():
        raise InputError(f"--data {args.data}: no such file")
    if args.out and not Path(args.out).resolve().parent.is_dir():
        raise InputError(f"--out {args.out}: there is no folder {Path(args.out).parent}")
    usual = Path(os.environ.get("FOUNDATION_DATA", "../shared/data")) / "mp_crysxpp" / "data.jsonl.gz"
    results = run_benchmark(Path(args.data) if args.data else (usual if usual.is_file() else None))
    rows = [
        [f"{group}.{key}", number(value)]
        for group in ("train", "predict", "graph", "data", "split")
        for key, value in results[group].items()
    ]
    title = f"{results['machine']['threads']} threads, encoder {results['encoder']['config_hash']}"
    print_table(title, ["figure", "value"], rows)
    if args.out:
        write_json(Path(args.out), results)
    return 0
