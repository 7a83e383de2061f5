"""`foundation export`: a package that predicts without this program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foundation.commands.parsing import OneLineParser


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(
        prog="foundation export",
        description="Write a folder with the model as one program, its card and predict.py, which needs torch, numpy "
        "and pymatgen only. The program is loaded back and compared with the model before the folder is put in place.",
    )
    made.add_argument("checkpoint", help="a .ckpt file, a run's folder (all seeds of it), or a shipped encoder")
    made.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="folder to make")
    made.add_argument(
        "--format",
        default="torch_export",
        choices=("torch_export", "aot_inductor"),
        help="torch_export runs wherever torch does; aot_inductor is compiled for this machine, which takes minutes",
    )
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    args = parser().parse_args(words)
    from foundation.checkpoint import find_members, load_checkpoint
    from foundation.export import export_package, free_place

    out = free_place(args.out)
    checkpoints = [load_checkpoint(member) for member in find_members(args.checkpoint)]
    checked = export_package(checkpoints, out, args.format)
    print(
        f"{out}: {args.format} of {len(checkpoints)} model{'s' if len(checkpoints) > 1 else ''}; predictions differ "
        f"from theirs by at most {checked['largest_deviation']:.1e} of the scale (allowed {checked['tolerance']:.0e}) "
        f"over {checked['batches']} batches of 1 to {checked['largest_batch']} crystals"
    )
    print(f"run it: python {out}/predict.py PATH... --out predictions.csv")
    return 0
