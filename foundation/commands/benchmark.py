"""`foundation benchmark`: rates of this machine, where time goes, and error at equal time beside the peers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from foundation.commands.benchmark_heads import heads_parser
from foundation.commands.benchmark_scale import rows_parser, scaling_parser
from foundation.commands.benchmark_tensors import tensors_parser
from foundation.commands.parsing import OneLineParser, a_duration

_DATA = "by default $FOUNDATION_DATA or ../shared/data"
_CRYSTALS = f"JSON-lines of crystals; {_DATA}/mp_crysxpp, else those that ship"
_PEERS = (
    "interpreters of environments that hold the peers nequip and alignn; those that are not named do not take part. "
    "To make them: python3 -m venv ENV && ENV/bin/pip install ... as foundation/benchmarks/peers/README.md says"
)


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(
        prog="foundation benchmark",
        description="Rates of training, predicting and building graphs, in under three minutes.",
        epilog="`foundation benchmark full`: where time goes, how cost grows, peers side by side. "
        "`foundation benchmark accuracy`: error at equal processor time. "
        "`foundation benchmark frozen`: what a frozen encoder saves. "
        "`foundation benchmark scaling`: two processes beside one. "
        "`foundation benchmark rows`: stores of millions of crystals. "
        "`foundation benchmark tensors`: tensors, spectra and labels of atoms, with and without pretraining. "
        "`foundation benchmark heads`: what every head costs in joint training. "
        "Each has a --help of its own.",
    )
    made.set_defaults(work=_rates)
    _common(made)
    made.add_argument("--out", metavar="FILE", help="JSON file to write the results to")
    made.add_argument("--data", metavar="FILE", help=_CRYSTALS)
    _batch_size(made)
    return made


def full_parser() -> OneLineParser:
    """The options of ``foundation benchmark full``."""
    made = OneLineParser(
        prog="foundation benchmark full",
        description="Where the time of a step goes, how cost grows, and peers side by side.",
    )
    made.set_defaults(work=_full)
    _common(made)
    made.add_argument("--out", required=True, metavar="DIR", help="folder for results.json and the plots")
    made.add_argument("--data", metavar="FILE", help=_CRYSTALS)
    made.add_argument("--peers", nargs="+", default=[], metavar="NAME=PYTHON", help=_PEERS)
    made.add_argument("--rounds", type=_positive, default=5, help="rounds of the comparison (%(default)s)")
    made.add_argument("--max-edges", type=_positive, default=1_000_000, help="largest batch to predict (%(default)s)")
    _batch_size(made)
    return made


def accuracy_parser() -> OneLineParser:
    """The options of ``foundation benchmark accuracy``."""
    made = OneLineParser(
        prog="foundation benchmark accuracy",
        description="Error on unseen crystals after equal processor seconds of training from scratch, ours and the "
        "peers'. Every run is kept in DIR/cells: a benchmark that was stopped goes on where it was.",
    )
    made.set_defaults(work=_accuracy)
    _common(made)
    made.add_argument("--out", required=True, metavar="DIR", help="folder for results.csv, results.json and the plot")
    made.add_argument("--data", metavar="DIR", help=f"folder with mp_crysxpp and devi2024; {_DATA}")
    made.add_argument("--peers", nargs="+", default=[], metavar="NAME=PYTHON", help=_PEERS)
    made.add_argument("--tasks", nargs="+", choices=("gv", "formation_energy"), help="tasks; by default all")
    made.add_argument(
        "--budgets", nargs="+", type=a_duration, default=[120.0, 300.0, 600.0], metavar="SECONDS", help="120s 300s 600s"
    )
    made.add_argument(
        "--learning-rates", nargs="+", type=float, metavar="RATE", help="rates to try; by default three for each model"
    )
    made.add_argument("--seeds", type=_positive, default=1, help="runs per budget (%(default)s)")
    made.add_argument("--jobs", type=_positive, default=1, help="processes at a time (%(default)s)")
    made.add_argument(
        "--compile-from",
        type=a_duration,
        metavar="SECONDS",
        help="shortest budget at which ours and NequIP are compiled; by default where it pays, 220 s",
    )
    return made


def frozen_parser() -> OneLineParser:
    """The options of ``foundation benchmark frozen``."""
    made = OneLineParser(
        prog="foundation benchmark frozen",
        description="Time of an epoch of adaptation where a part of the encoder is frozen, and what it saves to "
        "compute that part only once.",
    )
    made.set_defaults(work=_frozen, device="cpu")
    made.add_argument("--pretrained", default="mp-small", help="what is adapted (%(default)s)")
    made.add_argument("--data.store", dest="store", required=True, help="store with the labels")
    made.add_argument("--property", required=True, help="the property to adapt to")
    made.add_argument("--train-size", type=_positive, help="labels; by default all")
    made.add_argument("--rounds", type=_positive, default=3, help="rounds (%(default)s)")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    kinds = {
        "full": full_parser,
        "accuracy": accuracy_parser,
        "frozen": frozen_parser,
        "scaling": scaling_parser,
        "rows": rows_parser,
        "tensors": tensors_parser,
        "heads": heads_parser,
    }
    if words and words[0] in kinds:
        args = kinds[words[0]]().parse_args(words[1:])
    else:
        args = parser().parse_args(words)
    from foundation.benchmarks.machine import check_device

    check_device(args.device)
    code: int = args.work(args)
    return code


def _rates(args: argparse.Namespace) -> int:
    from datamodules.errors import InputError
    from foundation.benchmarks.rates import run_benchmark
    from foundation.commands.report import number, print_table
    from foundation.files import write_json

    if args.out and not Path(args.out).resolve().parent.is_dir():
        raise InputError(f"--out {args.out}: there is no folder {Path(args.out).parent}")
    results = run_benchmark(crystals_file(args.data), args.device, args.batch_size)
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


def _full(args: argparse.Namespace) -> int:
    from foundation.benchmarks.contestants import absent, parse_peers
    from foundation.benchmarks.full import run_full

    peers = parse_peers(args.peers)
    for line in absent(peers):
        print(line)
    run_full(Path(args.out), crystals_file(args.data), args.device, peers, args.rounds, args.max_edges, args.batch_size)
    return 0


def _accuracy(args: argparse.Namespace) -> int:
    from datamodules.errors import InputError
    from foundation.benchmarks.accuracy import COMPILE_FROM, LEARNING_RATES, Plan, compare
    from foundation.benchmarks.accuracy_report import report
    from foundation.benchmarks.contestants import absent, parse_peers
    from foundation.benchmarks.crystals import encoder_config
    from foundation.benchmarks.tasks import TASKS

    folder = Path(args.data) if args.data else data_folder()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; name the folder of data sets with --data")
    peers = parse_peers(args.peers)
    tasks = [TASKS[name](folder) for name in args.tasks or TASKS]
    plan = Plan(
        folder=Path(args.out),
        peers=peers,
        budgets=sorted(set(args.budgets)),
        learning_rates=dict.fromkeys(LEARNING_RATES, args.learning_rates) if args.learning_rates else LEARNING_RATES,
        seeds=args.seeds,
        jobs=args.jobs,
        threads=int(os.environ.get("OMP_NUM_THREADS", "1")),
        device=args.device,
        compile_from=COMPILE_FROM if args.compile_from is None else dict.fromkeys(COMPILE_FROM, args.compile_from),
        encoder=encoder_config(),
    )
    for line in absent(peers):
        print(line)
    rows = compare(plan, tasks)
    report(plan, tasks, rows)
    return 1 if any(row["mae"] is None for row in rows) else 0


def _frozen(args: argparse.Namespace) -> int:
    from datamodules.datamodule import CrystalDataModule
    from foundation.benchmarks.frozen import compare_epochs
    from foundation.checkpoint import find_members, load_checkpoint
    from foundation.commands.report import number, print_table

    checkpoint = load_checkpoint(find_members(args.pretrained)[0])
    data = CrystalDataModule(args.store, train_size=args.train_size)
    rows = compare_epochs(data, args.property, checkpoint, args.rounds)
    full = rows[0]["seconds"]
    print_table(
        f"an epoch of {len(data.split.train)} crystals, processor seconds",
        ["strategy", "seconds", "without", "full / this", "difference of predictions"],
        [
            [
                row["strategy"],
                *(number(row[key]) for key in ("seconds", "seconds_without")),
                number(full / row["seconds"]),
                f"{row['difference']:.1e}",
            ]
            for row in rows
        ],
    )
    return 0


def _common(made: argparse.ArgumentParser) -> None:
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="what to measure on (%(default)s)")


def _batch_size(made: argparse.ArgumentParser) -> None:
    made.add_argument(
        "--batch-size",
        type=_positive,
        default=32,
        help="crystals of a batch (%(default)s); a GPU wants more",
    )


def data_folder() -> Path:
    """Where the data sets are if nothing else is said."""
    return Path(os.environ.get("FOUNDATION_DATA", "../shared/data"))


def crystals_file(given: str | None) -> Path | None:
    """The crystals to measure on: those given, the usual ones, or None for those that ship.

    Raises:
        InputError: If there is no such file.
    """
    from datamodules.errors import InputError

    if given:
        if not Path(given).is_file():
            raise InputError(f"--data {given}: no such file")
        return Path(given)
    usual = data_folder() / "mp_crysxpp" / "data.jsonl.gz"
    return usual if usual.is_file() else None


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: not a positive number")
    return value
