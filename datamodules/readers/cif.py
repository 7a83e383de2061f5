"""The text of a CIF, cut into its structures and read by pymatgen; it needs nothing else."""

from __future__ import annotations

import re
import warnings

from datamodules.crystals import Crystal, as_crystal

_BLOCK = re.compile(r"(?im)^(?=data_)")


def cif_blocks(text: str) -> list[str]:
    """The data blocks of a CIF that hold structures; one that cannot be read where there are none.

    Blocks without atoms hold the bibliography; a file of such blocks only is unreadable.
    """
    blocks = [block for block in _BLOCK.split(text) if block.lower().startswith("data_")]
    return [block for block in blocks if "_atom_site" in block] or blocks[:1] or [""]


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
