"""`foundation study`: which pretraining, which strategy, at which size, over a folder of targets."""

from __future__ import annotations

import argparse
import os
import re
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from foundation.commands.parsing import OneLineParser, a_duration

if TYPE_CHECKING:
    from foundation.study.config import StudyConfig
    from foundation.study.grid import Cell
    from foundation.study.plan import Plan
    from foundation.study.sources import Given


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(
        prog="foundation study",
        description="A grid of sources, strategies, sizes, trials and seeds over a folder of targets. Every cell is a "
        "file in DIR/cells: a study that was stopped goes on where it was, in any number of processes.",
    )
    made.add_argument("--config", default="configs/study/devi2024.yaml", help="the study (%(default)s)")
    made.add_argument("--data", metavar="DIR", help="folder with NAME.json.gz and splits/NAME.json for every target")
    made.add_argument(
        "--pretrained",
        nargs="+",
        default=[],
        metavar="CKPT",
        help="the source 'joint'; NAME=CKPT is a source of that name",
    )
    made.add_argument(
        "--cells",
        metavar="AXES",
        help="'target=ph,dc;size=100,800;trial=trial1;strategy=full;source=joint;seed=0'; an axis that is not named "
        "takes its first value; without this option the whole grid",
    )
    made.add_argument("--budget", type=a_duration, metavar="TIME", help="training time of a cell, such as 10m")
    made.add_argument("--leakage", choices=("warn", "exclude", "error"), help="where an encoder has seen test labels")
    made.add_argument("--jobs", type=_positive, default=1, help="processes at a time (%(default)s)")
    made.add_argument("--task", type=_share, metavar="I/N", help="only every N-th cell from the I-th; in a Slurm array")
    made.add_argument("--retry", action="store_true", help="compute cells again that failed earlier")
    made.add_argument("--keep-models", action="store_true", help="keep the checkpoints and plots of every cell")
    made.add_argument("--reference", metavar="CSV", help="another work's results to show beside these")
    made.add_argument("--out", default="runs/study", metavar="DIR", help="folder of the study (%(default)s)")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    args = parser().parse_args(words)
    from datamodules.errors import InputError
    from foundation.study.cells import OK
    from foundation.study.grid import share
    from foundation.study.results import reference_of
    from foundation.study.runner import leaving_cleanly, run_study

    plan, grid = prepare(args)
    reference_of(plan, args.reference)  # refuses a bad one before anything is computed
    if plan.out.exists() and not plan.out.is_dir():
        raise InputError(f"--out {plan.out}: not a folder")
    part, parts = args.task or _slurm_share() or (1, 1)
    own = share(grid, part, parts)
    with leaving_cleanly():
        table, lines = run_study(plan, grid, own, args.jobs, args.reference)
    counts = table["status"].value_counts()
    told = ", ".join(f"{count} {status}" for status, count in counts.items()) or "no cell"
    for line in lines:
        print(line)
    print(f"{plan.out / 'results.csv'}, report.html: {told}")
    return 0 if OK in counts or not own else 1


def prepare(args: argparse.Namespace) -> tuple[Plan, list[Cell]]:
    """Read and check everything before anything is written.

    Raises:
        InputError: For any mistake in the configuration, the folder or the options.
    """
    from datamodules.errors import InputError
    from foundation.study.cells import refusal
    from foundation.study.config import load_config
    from foundation.study.folder import TargetFolder
    from foundation.study.grid import NONE, make_grid, parse_cells
    from foundation.study.options import check_options
    from foundation.study.plan import Plan, check_strategies, needs_source
    from foundation.study.scale import check_distinct
    from foundation.study.sources import parse_source

    config = load_config(args.config)
    folder = TargetFolder(_data_folder(args.data, config))
    given = _given(args.pretrained)
    plan = Plan(
        config,
        folder,
        Path(args.out),
        given,
        budget=args.budget,
        leakage=args.leakage,
        retry=args.retry,
        keep_models=args.keep_models,
        run_id=uuid.uuid4().hex,
    )
    chosen = parse_cells(args.cells) if args.cells is not None else None
    check_strategies((chosen or {}).get("strategy", config.axes.strategy))
    check_strategies([name for name in config.recipes if name != "others"])
    grid = make_grid(config.axes, chosen, folder, needs_source)
    for source in (chosen or {}).get("source", []):
        if source != NONE:  # also one that no strategy of this grid needs
            parse_source(source, grid[0].target, config, folder, given)
    strategies = list(dict.fromkeys(cell.strategy for cell in grid))
    check_options(config, strategies, pretrains=any(cell.source not in (NONE, *given) for cell in grid))
    for target in dict.fromkeys(cell.target for cell in grid):
        check_distinct(folder.records(target))
    refusals = [refusal(plan, cell) for cell in grid]
    if all(refusals):
        raise InputError(f"--cells: {refusals[0]}")
    return plan, grid


def _data_folder(given: str | None, config: StudyConfig) -> Path:
    from datamodules.errors import InputError

    folder = Path(given) if given else Path(os.environ.get("FOUNDATION_DATA", "../shared/data")) / config.data
    if not folder.is_dir():
        raise InputError(f"--data {folder}: no such folder" if given else f"{folder}: no such folder; give --data DIR")
    return folder


def _given(words: Sequence[str]) -> dict[str, Given]:
    """Sources by name from ``--pretrained``; paths without a name are together "joint"."""
    from datamodules.errors import InputError
    from foundation.study.grid import NONE
    from foundation.study.sources import JOINT, given_source

    paths: dict[str, list[str]] = {}
    for word in words:
        name, equals, path = word.partition("=")
        named = bool(equals) and not Path(word).exists()
        if named and (not re.fullmatch(r"[\w.@-]+", name) or name == NONE):
            raise InputError(f"--pretrained {word}: a name is made of letters, digits and ._@-, and is not {NONE!r}")
        if named and name in paths:
            raise InputError(f"--pretrained {word}: the name {name} is given twice")
        paths.setdefault(name if named else JOINT, []).append(path if named else word)
    return {name: given_source(found) for name, found in paths.items()}


def _slurm_share() -> tuple[int, int] | None:
    """Which part of a Slurm array this is; None outside of one."""
    values = [os.environ.get(f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "STEP", "COUNT")]
    if values[0] is None or values[3] is None:
        return None
    task, first, step, count = (int(value or default) for value, default in zip(values, (0, 0, 1, 1), strict=True))
    return (task - first) // step + 1, count


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: not a positive number")
    return int(text)


def _share(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise argparse.ArgumentTypeError(f"{text}: write I/N with I from 1 to N, such as 1/4")
    return int(match[1]), int(match[2])
