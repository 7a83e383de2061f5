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
    from foundation.tracking.sync import check_server, find_records, upload

    waiting, uploaded = find_records(folders)
    before = f", {len(uploaded)} before" if uploaded else ""
    if waiting:
        check_server()
    failed = 0
    for number, record in enumerate(waiting, start=1):
        problem = upload(record)
        failed += problem is not None
        told = "uploaded" if problem is None else f"error: {problem}:"
        print(f"{number} of {len(waiting)}: {told} {record.parent}", file=sys.stderr, flush=True)
    print(f"uploaded {len(waiting) - failed} of {len(waiting)} records{before}")
    return 1 if failed else 0
