"""The vocabulary: what a property is called, its unit, and how it transforms under rotation."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError
from datamodules.tensors import index_symmetries

Level = Literal["crystal", "atom"]
Kind = Literal["scalar", "class", "tensor", "spectrum"]
WEIGHT = ".weight"  # behind the name of a property: how much each of its labels counts


@dataclass(frozen=True)
class Property:
    """One physical quantity that a crystal, or each atom of it, can be labelled with.

    Attributes:
        name: The name used everywhere: in stores, configs, metrics and predictions.
        unit: Physical unit of the stored values; "" for a dimensionless quantity.
        irreps: How the value transforms under O(3), in e3nn's notation ("0e" for a scalar).
        level: Whether the label belongs to the "crystal" or to each "atom".
        kind: "scalar", "class" (0, 1, ...), "tensor" or "spectrum".
        log: Whether models should learn log10 of the value (positive quantities over decades).
        formula: Index symmetry of a Cartesian tensor, such as "ij=ji"; "" for what is none or not stated.
        grid: Where the bins of a spectrum stand: "first..last..count unit", such as "0..1000..51 cm^-1".
        classes: How many classes there are; 0 for what is no class, or one of two.
    """

    name: str
    unit: str = ""
    irreps: str = "0e"
    level: Level = "crystal"
    kind: Kind = "scalar"
    log: bool = False
    formula: str = ""
    grid: str = ""
    classes: int = 0

    @property
    def is_single(self) -> bool:
        """Whether a label is one number per crystal."""
        return self.level == "crystal" and self.kind in ("scalar", "class")

    @property
    def column(self) -> str:
        """Column heading with the unit, such as ``band_gap (eV)``."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest, a config or a checkpoint."""
        # What most properties do not state is left out: it would change the content hash of their stores.
        return {key: value for key, value in asdict(self).items() if value or key not in ("formula", "grid", "classes")}


def _scalars(unit: str, *names: str) -> dict[str, Property]:
    return {name: Property(name, unit) for name in names}


def _tensors(unit: str, irreps: str, formula: str, *names: str) -> dict[str, Property]:
    return {name: Property(name, unit, irreps, kind="tensor", formula=formula) for name in names}


# Quantities whose unit the field agrees on. A source that declares another unit for one of these
# names is refused; a source that declares none is given this one, with a warning.
KNOWN: dict[str, Property] = {
    **_scalars("eV/atom", "formation_energy_per_atom", "e_above_hull", "energy_per_atom"),
    **_scalars("eV", "band_gap", "work_function", "dir_gap", "ind_gap"),
    **_scalars("eV/Angstrom^2", "surface_energy"),
    **_scalars("GPa", "bulk_modulus", "shear_modulus", "K_Voigt", "G_Voigt", "K_VRH", "G_VRH"),
    **_scalars("Angstrom^3/atom", "volume_per_atom"),
    **_scalars("cm^-1", "last_phonon_dos_peak"),
    "magmom_site": Property("magmom_site", "muB", level="atom"),
    "born_charges": Property("born_charges", "e", "1x0e+1x1e+1x2e", "atom", "tensor", formula="ij"),
    **_tensors("GPa", "2x0e+2x2e+1x4e", "ijkl=jikl=klij", "elastic_tensor"),
    **_tensors("", "0e+2e", "ij=ji", "dielectric_total", "dielectric_electronic"),
    **_tensors("C/m^2", "2x1o+1x2o+1x3o", "ijk=ikj", "piezoelectric_tensor"),
    "phonon_dos": Property("phonon_dos", "", "51x0e", "crystal", "spectrum", grid="0..1000..51 cm^-1"),
    "is_metal": Property("is_metal", "", kind="class"),
}

Labels = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Derived:
    """A property that follows from another one.

    Attributes:
        property: What it is.
        source: Name of the property it follows from.
        of: [M] values of the source, NaN where missing, to [M] values of this one, NaN alike.
    """

    property: Property
    source: str
    of: Callable[[Labels], Labels]


def _no_gap(band_gap: Labels) -> Labels:
    return np.where(np.isnan(band_gap), np.nan, (band_gap <= 0.0).astype(np.float64))


# Taken from its source where a store does not have it itself.
DERIVED: dict[str, Derived] = {"is_metal": Derived(KNOWN["is_metal"], "band_gap", _no_gap)}

_HOW = "write name:unit, and behind it log, a formula such as ij=ji, atom, grid=0..1000..51 cm^-1, or classes=7"
_HEADER = re.compile(r"^\s*(?P<name>.*?)\s*\((?P<unit>[^()]*(?:\([^()]*\)[^()]*)*)\)\s*$")


def split_heading(heading: str) -> tuple[str, str | None]:
    """Split ``"name (unit)"`` into name and unit; the unit is None where none stands there."""
    match = _HEADER.match(heading)
    return (match["name"], match["unit"].strip()) if match else (heading.strip(), None)


def parse_property(text: str) -> Property:
    """Parse ``name:unit`` and what may follow, as given to ``--property``.

    ``:log`` learns the logarithm; ``:ij=ji`` is the index symmetry of a tensor; ``:grid=0..1000..51 cm^-1`` are the
    bins of a spectrum; ``:classes=7`` counts the classes of a label; ``:atom`` says that each atom has one.

    Raises:
        InputError: If the text is malformed or its unit contradicts the known one.
    """
    name, *rest = text.split(":")
    if not name or not rest:
        raise InputError(f"--property {text!r}: {_HOW}")
    known = resolve(name, rest[0])
    said: dict[str, Any] = {"log": known.log}
    for part in rest[1:]:
        key, _, value = part.partition("=")
        if part in ("log", "atom"):
            said |= {"log": True} if part == "log" else {"level": "atom"}
        elif key == "grid":
            bins = len(parse_grid(value)[0])
            said |= {"kind": "spectrum", "grid": value, "irreps": f"{bins}x0e"}
        elif key == "classes" and value.isdecimal() and int(value) > 1:
            said |= {"kind": "class", "classes": int(value) if int(value) > 2 else 0}
        elif set(part) <= set("ijklmn=-"):
            index_symmetries(part)  # refuses what makes no sense
            # irreps "" = left to the head, which takes them from the formula
            said |= {"kind": "tensor", "formula": part, "irreps": known.irreps if part == known.formula else ""}
        else:
            raise InputError(f"--property {text!r}: {part!r} is not understood; {_HOW}")
    return Property(**{**known.as_dict(), **said})


def parse_grid(text: str) -> tuple[npt.NDArray[np.float64], str]:
    """The bins of ``first..last..count unit``, and their unit.

    Raises:
        InputError: If the text is malformed.
    """
    bounds, _, unit = text.strip().partition(" ")
    try:
        first, last, count = bounds.split("..")
        grid = np.linspace(float(first), float(last), int(count))
    except ValueError as error:
        raise InputError(f"grid {text!r}: write first..last..count unit, such as 0..1000..51 cm^-1") from error
    if len(grid) < 2 or not grid[-1] > grid[0]:
        raise InputError(f"grid {text!r}: needs two bins at least, the last behind the first")
    return grid, unit.strip()


def resolve(name: str, unit: str | None) -> Property:
    """The property of this name, its unit checked against the known one.

    Args:
        name: Property name.
        unit: Unit the source declares, or None where it declares none.

    Raises:
        InputError: If the declared unit contradicts the known one.
    """
    known = KNOWN.get(name)
    if known is None:
        return Property(name, unit or "")
    if unit is not None and unit != known.unit:
        raise InputError(
            f"property {name}: unit {unit!r} contradicts the known unit {known.unit!r}; "
            "convert the values or import them under another name with --map old=new"
        )
    return known
