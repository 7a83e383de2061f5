"""`foundation wandb`: upload what was recorded offline."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from foundation.commands.parsing import OneLineParser


def main(words: Sequence[str]) -> int:
    """Run the command."""
    parser = OneLineParser(prog="foundation wandb", description="Records in Weights & Biases.")
    commands = parser.add_subparsers(dest="wandb_command", required=True, metavar="{sync}")
    sync = commands.add_parser(
        "sync",
        help="upload runs that were recorded offline",
        description="Upload the runs below the given folders that were recorded offline; those uploaded are skipped.",
    )
    sync.add_argument("folders", nargs="+", metavar="DIR", help="folder of a run, or of several")
    return _sync(parser.parse_args(words).folders)


def _sync(folders: Sequence[str]) -> int:
    from foundation.tracking.sync import find_records, upload

    waiting, uploaded = find_records(folders)
    skipped = f"{len(uploaded)} uploaded before" if uploaded else ""
    if not waiting:
        print(f"nothing to upload: {skipped}")
        return 0
    print(f"uploading {len(waiting)} records" + (f"; {skipped}" if skipped else ""), file=sys.stderr, flush=True)
    problem = upload(waiting)
    if problem is not None:
        print(f"foundation: error: {problem}", file=sys.stderr)
        return 1
    print(f"uploaded {len(waiting)} records")
    return 0
