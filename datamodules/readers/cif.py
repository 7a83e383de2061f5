"""The text of a CIF, cut into its structures and read by pymatgen; it needs nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator

from datamodules.crystals import Crystal, as_crystal


def cif_blocks(lines: Iterable[str]) -> Iterator[str]:
    """The data blocks of a CIF that hold structures, one at a time; one that cannot be read where there are none.

    Blocks without atoms hold the bibliography; a file of such blocks only is unreadable.

    Args:
        lines: Its lines, with their ends.
    """
    without: str | None = None
    found = False
    for block in _blocks(lines):
        if "_atom_site" in block:
            found = True
            yield block
        elif without is None:
            without = block
    if not found:
        yield without or ""


def _blocks(lines: Iterable[str]) -> Iterator[str]:
    """From a line that begins with ``data_`` to the next; what stands before the first is in none."""
    block: list[str] = []
    for line in lines:
        if line[:5].lower() == "data_":
            if block:
                yield "".join(block)
            block = [line]
        elif block:
            block.append(line)
    if block:
        yield "".join(block)


def crystal_of_cif(text: str, id: str = "") -> Crystal:
    """Crystal from the first structure in the text of a CIF.

    Raises:
        ValueError: "disordered" for partial occupancy; pymatgen's own errors for bad text.
    """
    from pymatgen.io.cif import CifParser

    with warnings.catch_warnings():
        # pymatgen warns of rounded coordinates and the like in nearly every file of the field
        warnings.simplefilter("ignore")
        structures = CifParser.from_str(text, check_cif=False).parse_structures(primitive=False, on_error="raise")
    return as_crystal(structures[0], id)
