"""`foundation quickstart`: the whole path on crystals made here, in a few minutes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foundation.commands.parsing import OneLineParser


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(
        prog="foundation quickstart",
        description="Make ordered alloys, pretrain on three of their properties, adapt to a fourth with 50 labels by "
        "several strategies and from scratch, and compare. Nothing is downloaded; about four minutes on two cores.",
    )
    made.add_argument("--out", default="runs/quickstart", help="folder for data, models, table and plots")
    made.add_argument("--wandb", default="off", choices=("offline", "online", "off"), help="record the runs there")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    args = parser().parse_args(words)
    started, spent = time.perf_counter(), _processor_seconds()
    import torch

    from foundation.commands.configuration import say
    from foundation.quickstart.run import run

    # Batches of a few hundred edges gain nothing from a second thread, and lose much beside a busy neighbour.
    torch.set_num_threads(1)
    out = Path(args.out)
    results = run(out, say, wandb=args.wandb)
    _print_results(results)
    print(f"plots:   {', '.join(str(path) for path in sorted((out / 'plots').glob('*.png')))}")
    print(f"numbers: {out / 'results.csv'}, {out / 'metrics.json'}")
    print(f"took {time.perf_counter() - started:.0f} s, {_processor_seconds() - spent:.0f} s of processor time")
    print(
        "\nWith crystals of your own: foundation data import FILES --out STORE --property NAME:UNIT\n"
        "then: foundation adapt --pretrained mp-small --data.store STORE --property NAME "
        "--strategy layer_decay --folds 5"
    )
    return 0


def _print_results(results: Mapping[str, Any]) -> None:
    from statistics import mean, stdev

    from foundation.commands.report import number, print_table

    crystals, unit = results["crystals"], results["unit"]
    rows = [
        [
            row["strategy"],
            number(mean(row["mae"])),
            number(stdev(row["mae"])) if len(row["mae"]) > 1 else "-",
            number(row["ensemble_mae"]),
            f"{row['trainable_parameters']:,}",
            f"{mean(row['seconds']):.1f}",
        ]
        for row in results["strategies"]
    ]
    rows += [[name, number(error), "-", "-", "-", "-"] for name, error in results["baselines"].items()]
    seeds = len(results["strategies"][0]["mae"])
    print_table(
        f"{results['property']} from {crystals['labels']} labels, {crystals['test']} test crystals of alloy systems "
        "that no training crystal belongs to",
        ["strategy", f"test MAE ({unit})", f"spread of {seeds} seeds", "MAE of their mean", "trains", "seconds"],
        rows,
    )


def _processor_seconds() -> float:
    """Processor time of this process and of those it has waited for."""
    import os

    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
