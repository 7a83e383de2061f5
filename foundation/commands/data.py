"""`foundation data`: make a store from sources, and say what is in one."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foundation.commands.parsing import OneLineParser

if TYPE_CHECKING:
    from datamodules.store import CrystalStore


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the sub-commands ``import`` and ``info``."""
    commands = parser.add_subparsers(dest="data_command", required=True, metavar="{import,info}")
    read = commands.add_parser(
        "import",
        help="read sources into one store",
        description="Read sources into one store; the same crystal in several sources becomes one row.",
        epilog="Sources: JARVIS or Matbench JSON(.gz), JSON-lines(.gz), a CSV with a column of CIF/POSCAR paths or "
        "CIF text, anything ASE reads (extxyz, db, ...), or a folder of structure files.",
    )
    read.add_argument("sources", nargs="+", metavar="SOURCE", help="file or folder; earlier labels win")
    read.add_argument("--out", required=True, metavar="STORE", help="folder to write")
    read.add_argument(
        "--property",
        action="append",
        default=[],
        dest="properties",
        metavar="name:unit[:log]",
        help="declare a unit, and that models should learn the logarithm; or, behind it, the index symmetry of a "
        "tensor (:ij=ji), :atom, the bins of a spectrum (:grid=0..1000..51 cm^-1) or :classes=7",
    )
    read.add_argument("--structure-column", metavar="NAME", help="where a table keeps its structures")
    read.add_argument("--map", action="append", default=[], dest="maps", metavar="old=new", help="rename a label")
    read.add_argument(
        "--symmetry-tolerance",
        type=float,
        default=0.05,
        help="how far a tensor may be from what its crystal's symmetry allows, relative to its largest component",
    )
    read.add_argument(
        "--asymmetric",
        default="reject",
        choices=("reject", "downweight", "keep"),
        help="what becomes of a tensor that is further",
    )
    read.add_argument("--no-merge", action="store_true", help="every record is a row of its own, as for slabs")
    read.add_argument("--overwrite", action="store_true", help="replace a store that stands at STORE")
    tell = commands.add_parser("info", help="say what is in a store", description="Say what is in a store.")
    tell.add_argument("store", metavar="STORE")


def run(args: argparse.Namespace) -> int:
    """Run the sub-command that was asked for and return the exit code."""
    if args.data_command == "info":
        return info(args.store)
    others = {"tolerance": args.symmetry_tolerance, "asymmetric": args.asymmetric, "separate": args.no_merge}
    return import_sources(
        args.sources, args.out, args.properties, args.structure_column, args.maps, args.overwrite, **others
    )


def import_sources(
    sources: Sequence[str],
    out: str,
    properties: Sequence[str] = (),
    structure_column: str | None = None,
    maps: Sequence[str] = (),
    overwrite: bool = False,
    **others: Any,
) -> int:
    """Import sources into a store and print what became of them.

    Returns:
        0, or 1 if no record succeeded (nothing is written then).

    Raises:
        InputError: If an argument, a source as a whole or a unit is wrong; nothing is written then.
    """
    from datamodules.importing import import_store
    from datamodules.store import CrystalStore

    result = import_store(sources, out, properties, structure_column, maps, overwrite, **others)
    for line in result.warnings:
        print(line, file=sys.stderr)
    if result.manifest is None:
        reasons = Counter(row[3] for row in result.rejected)
        listed = ", ".join(f"{reason} {count}" for reason, count in reasons.most_common())
        first = ": ".join(str(part) for part in result.rejected[0] if part != "")
        print(f"no record succeeded, nothing is written; rejected: {listed}; the first: {first}", file=sys.stderr)
        return 1
    print("\n".join(describe(CrystalStore.open(out))))
    if result.rejected:
        print(f"rejected records and labels are listed in {out}/rejected.csv")
    if result.manifest["counts"]["conflicts"]:
        print(f"conflicting labels are listed in {out}/conflicts.csv")
    return 0


def info(store: str) -> int:
    """Print what is in a store.

    Raises:
        InputError: If there is no store, or not one this program reads.
    """
    from datamodules.store import CrystalStore

    print("\n".join(describe(CrystalStore.open(store))))
    return 0


def describe(store: CrystalStore) -> list[str]:
    """The lines that `info` prints: counts, sources, properties, elements, cell sizes."""
    import numpy as np
    from ase.data import chemical_symbols

    counts = store.manifest["counts"]
    names = {"records": "records read", "dropped_labels": "labels rejected", "duplicates": "duplicate labels"}
    names |= {"conflicts": "conflicting labels", "downweighted": "labels that count less"}
    order = ("records", "crystals", "merged", "rejected", "dropped_labels", "downweighted", "duplicates", "conflicts")
    rows = [(names.get(key, key), f"{counts[key]:,}") for key in order if key in counts]
    lines = [f"store {store.path}  {store.content_hash[:12]}", *_aligned(rows, right=(1,))]
    sources = [(item["name"], f"{item['bytes']:,} bytes") for item in store.manifest.get("sources", [])]
    lines += ["", "sources", *_aligned(sources, right=(1,))] if sources else []
    head = ("property", "unit", "level", "kind", "count", "min", "median", "max")
    lines += ["", *_aligned([head, *_property_rows(store)], right=(4, 5, 6, 7))]
    symbols = sorted(chemical_symbols[z] for z in np.unique(store.numbers))
    lines += ["", *textwrap.wrap(f"elements ({len(symbols)}): {' '.join(symbols)}", 100, subsequent_indent="  ")]
    sizes = np.diff(store.ptr)
    if len(sizes):
        lines.append(f"atoms per cell: min {sizes.min()}, median {np.median(sizes):g}, max {sizes.max()}")
    return lines


def _property_rows(store: CrystalStore) -> list[tuple[str, ...]]:
    rows = []
    for prop in store.properties.values():
        found: dict[str, Any] = store.manifest["statistics"][prop.name]
        numbers = ("-" if found[key] is None else f"{found[key]:.6g}" for key in ("min", "median", "max"))
        kind = f"{prop.kind}, log" if prop.log else prop.kind
        rows.append((prop.name, prop.unit or "-", prop.level, kind, f"{found['count']:,}", *numbers))
    return rows


def _aligned(rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = zip(row, widths, strict=True)
        padded = [cell.rjust(width) if k in right else cell.ljust(width) for k, (cell, width) in enumerate(cells)]
        lines.append("  ".join(padded).rstrip())
    return lines


def main(words: Sequence[str]) -> int:
    """Run the command."""
    parser = OneLineParser(prog="foundation data", description="Make a store from sources, show what one holds.")
    add_arguments(parser)
    return run(parser.parse_args(words))
