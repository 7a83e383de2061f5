"""The vocabulary: what a property is called, its unit, and how it transforms under rotation."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from datamodules.errors import InputError

Level = Literal["crystal", "atom"]
Kind = Literal["scalar", "class", "tensor", "spectrum"]


@dataclass(frozen=True)
class Property:
    """One physical quantity that a crystal, or each atom of it, can be labelled with.

    Attributes:
        name: The name used everywhere: in stores, configs, metrics and predictions.
        unit: Physical unit of the stored values; "" for a dimensionless quantity.
        irreps: How the value transforms under O(3), in e3nn's notation ("0e" for a scalar).
        level: Whether the label belongs to the "crystal" or to each "atom".
        kind: "scalar", "class" (0 or 1), "tensor" or "spectrum".
        log: Whether models should learn log10 of the value (positive quantities over decades).
    """

    name: str
    unit: str = ""
    irreps: str = "0e"
    level: Level = "crystal"
    kind: Kind = "scalar"
    log: bool = False

    @property
    def column(self) -> str:
        """Column heading with the unit, such as ``band_gap (eV)``."""
        return f"{self.name} ({self.unit})" if self.unit else self.name

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a manifest, a config or a checkpoint."""
        return asdict(self)


def _scalars(unit: str, *names: str) -> dict[str, Property]:
    return {name: Property(name, unit) for name in names}


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
    "born_charges": Property("born_charges", "e", "1x0e+1x1e+1x2e", "atom", "tensor"),
    "elastic_tensor": Property("elastic_tensor", "GPa", "2x0e+2x2e+1x4e", "crystal", "tensor"),
    "dielectric_total": Property("dielectric_total", "", "0e+2e", "crystal", "tensor"),
    "dielectric_electronic": Property("dielectric_electronic", "", "0e+2e", "crystal", "tensor"),
    "phonon_dos": Property("phonon_dos", "", "51x0e", "crystal", "spectrum"),
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

_HEADER = re.compile(r"^\s*(?P<name>.*?)\s*\((?P<unit>[^()]*(?:\([^()]*\)[^()]*)*)\)\s*$")


def split_heading(heading: str) -> tuple[str, str | None]:
    """Split ``"name (unit)"`` into name and unit; the unit is None where none stands there."""
    match = _HEADER.match(heading)
    return (match["name"], match["unit"].strip()) if match else (heading.strip(), None)


def parse_property(text: str) -> Property:
    """Parse ``name:unit[:log]`` as given to ``--property``.

    Raises:
        InputError: If the text is malformed or its unit contradicts the known one.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not parts[0] or (len(parts) == 3 and parts[2] != "log"):
        raise InputError(f"--property {text!r}: write name:unit or name:unit:log, such as G_VRH:GPa:log")
    known = resolve(parts[0], parts[1])
    return Property(**{**known.as_dict(), "log": len(parts) == 3 or known.log})


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
