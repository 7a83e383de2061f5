"""`foundation benchmark scaling` and `foundation benchmark rows`: two processes beside one, and ever larger stores."""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

from foundation.commands.parsing import OneLineParser


def scaling_parser() -> OneLineParser:
    """The options of ``foundation benchmark scaling``."""
    made = OneLineParser(
        prog="foundation benchmark scaling",
        description="Weak scaling from one process to two of one thread each, by turns on the same crystals: the rate "
        "of two over twice that of one, with batches dealt out by work and by count. Run it on an idle machine.",
    )
    made.set_defaults(work=_scaling, device="cpu")
    made.add_argument("--out", metavar="FILE", help="JSON file to write the results to")
    made.add_argument("--data", metavar="FILE", help="JSON-lines of crystals; by default those of `benchmark`")
    made.add_argument("--rounds", type=int, default=9, help="rounds (%(default)s)")
    made.add_argument("--steps", type=int, default=10, help="steps of the two processes in a round (%(default)s)")
    made.add_argument("--compile", action="store_true", help="compile the encoder, as long runs do")
    made.add_argument("--batch-size", type=int, default=32, help="crystals of each process in a step (%(default)s)")
    return made


def rows_parser() -> OneLineParser:
    """The options of ``foundation benchmark rows``."""
    made = OneLineParser(
        prog="foundation benchmark rows",
        description="Time to open and sample a store of ever more crystals, made by repetition, and the memory that a "
        "process needs for it beside the mapped files.",
    )
    made.set_defaults(work=_rows, device="cpu")
    made.add_argument(
        "--out", required=True, metavar="DIR", help="folder for the stores, about 700 bytes a row; emptied"
    )
    made.add_argument(
        "--rows", nargs="+", type=int, default=[100_000, 1_000_000, 10_000_000], help="rows; 0.1, 1 and 10 million"
    )
    made.add_argument("--temperature", type=float, help="temperature sampling; by default every row once")
    return made


def _scaling(args: argparse.Namespace) -> int:
    from foundation.benchmarks.scaling import CLOCKS, IDLE, WAYS, run_scaling
    from foundation.commands.benchmark import crystals_file
    from foundation.commands.report import number, print_table
    from foundation.files import write_json

    rounds, steps, size = (max(1, given) for given in (args.rounds, args.steps, args.batch_size))
    found = run_scaling(crystals_file(args.data), rounds, steps, args.compile, size)
    rows = []
    for way, clock in itertools.product(WAYS, CLOCKS):
        each = found["efficiency"][way][clock]
        values = (each["median"], min(each["rounds"]), max(each["rounds"]))
        rows.append([way, clock, *(number(value) for value in values)])
    core = min(found["core"])
    print_table("rate of two processes over twice that of one", ["batches", "clock", "median", "least", "most"], rows)
    print(f"averaging gradients takes {1e3 * found['all_reduce_seconds']:.2g} ms")
    verdict = "" if core >= IDLE else ": other work runs here, so wall time says little; run it on an idle machine"
    print(f"idle check: a process got {core:.0%} of a core at least, load {found['load']:.1f}{verdict}")
    if args.out:
        write_json(Path(args.out), found)
    return 0


def _rows(args: argparse.Namespace) -> int:
    from foundation.benchmarks.rows import compare_sizes
    from foundation.commands.report import number, print_table

    Path(args.out).mkdir(parents=True, exist_ok=True)
    columns = ("open", "split", "order", "batches_per_second", "before", "after", "peak", "peak_row", "index")
    found = compare_sizes(Path(args.out), args.rows, args.temperature)
    print_table(
        "seconds, batches/s, MiB of own memory, bytes a row at the peak and of the sampler",
        ["rows", "opened", *(name.replace("_", " ") for name in columns)],
        [[f"{result['rows']:,}", result["opened"], *(number(result[name]) for name in columns)] for result in found],
    )
    return 0
