"""`foundation benchmark heads`: what every head of a configuration costs."""

from __future__ import annotations

import argparse

from foundation.commands.parsing import OneLineParser


def heads_parser() -> OneLineParser:
    """The options of ``foundation benchmark heads``."""
    made = OneLineParser(
        prog="foundation benchmark heads",
        description="Time of a step of joint training with all heads of a configuration, and with each of them, beside "
        "a step with its scalar heads alone. Labels are made up; every crystal has all of them.",
    )
    made.set_defaults(work=_heads, device="cpu")
    made.add_argument(
        "--config", default="configs/pretrain_tensors.yaml", metavar="FILE", help="whose heads (%(default)s)"
    )
    made.add_argument("--data", metavar="FILE", help="JSON-lines of crystals; by default those of `benchmark`")
    made.add_argument("--rounds", type=int, default=9, help="rounds of 8 steps (%(default)s)")
    return made


def _heads(args: argparse.Namespace) -> int:
    import yaml

    from datamodules.errors import InputError
    from datamodules.properties import KNOWN
    from foundation.benchmarks.heads import time_heads
    from foundation.commands.benchmark import crystals_file
    from foundation.commands.report import number, print_table
    from foundation.paths import config_path
    from foundation.training.spec import HeadSpec

    named = yaml.safe_load(config_path(args.config).read_text()).get("heads") or {}
    if unknown := [name for name in named if name not in KNOWN]:
        raise InputError(f"{args.config}: {', '.join(unknown)} is declared at import only, so it cannot be timed here")
    heads = {name: HeadSpec(head["class_path"], head.get("init_args", {}), KNOWN[name]) for name, head in named.items()}
    rows = time_heads(crystals_file(args.data), heads, max(1, args.rounds))
    print_table(
        "processor seconds of a step, and over those of the scalar heads alone",
        ["heads", "seconds", "ratio", "least", "most"],
        [[row["heads"], *(number(row[key]) for key in ("seconds", "ratio", "lowest", "highest"))] for row in rows],
    )
    return 0
