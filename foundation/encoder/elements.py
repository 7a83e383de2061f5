"""What chemistry already knows about each element, as the encoder's input beside a learned embedding."""

from __future__ import annotations

import math
import warnings

import numpy as np
import numpy.typing as npt
import torch
from pymatgen.core import Element
from torch import Tensor

NUM_ELEMENTS = 103  # H to Lr; row 0 of every table stands for no element

_SHELLS = "spdf"
_NUM_GROUPS = 18


def element_descriptors() -> Tensor:
    """Standardised descriptors of the elements from pymatgen's periodic table.

    An element that pretraining never saw still has its row here, so it is described by what it shares with
    its neighbours in the periodic table.

    Returns:
        [NUM_ELEMENTS + 1, D] float32, row z for atomic number z.
    """
    table = np.stack(list(element_properties().values()), axis=1)
    table = (table - table.mean(axis=0)) / (table.std(axis=0) + 1e-9)
    return torch.tensor(np.vstack([np.zeros(table.shape[1]), table]), dtype=torch.float32)


def element_radii() -> Tensor:
    """Atomic radii (Slater, 1964) from pymatgen's periodic table; a missing one takes the mean.

    Returns:
        [NUM_ELEMENTS + 1] float32 in Angstrom, entry z for atomic number z.
    """
    radii = element_properties()["atomic radius"]
    return torch.tensor([radii.mean(), *radii], dtype=torch.float32)


def element_properties() -> dict[str, npt.NDArray[np.float64]]:
    """The elements' properties by name, in pymatgen's units; a value it does not have takes the mean over the elements.

    Returns:
        Name -> [NUM_ELEMENTS], H first.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns for every value it does not have
        rows = [_properties(Element.from_Z(z)) for z in range(1, NUM_ELEMENTS + 1)]
    table = np.array([list(row.values()) for row in rows])
    table = np.where(np.isnan(table), np.nanmean(table, axis=0), table)
    return dict(zip(rows[0], table.T, strict=True))


def _properties(element: Element) -> dict[str, float]:
    outer = dict.fromkeys(_SHELLS, 0.0)
    for _, shell, electrons in element.full_electronic_structure[-4:]:
        outer[shell] = float(electrons)
    oxidation = element.common_oxidation_states or (math.nan,)
    return {
        "electronegativity": _number(element.X),
        "period": float(element.row),
        "group": float(element.group),
        "log mass": math.log(element.atomic_mass),
        "atomic radius": _number(element.atomic_radius),
        "ionic radius": _number(element.average_ionic_radius),
        "van der Waals radius": _number(element.van_der_waals_radius),
        "Mendeleev number": _number(element.mendeleev_no),
        "ionization energy": _number(element.ionization_energy),
        "electron affinity": _number(element.electron_affinity),
        "log melting point": _logarithm(element.melting_point),
        "molar volume": _number(element.molar_volume),
        "log thermal conductivity": _logarithm(element.thermal_conductivity),
        "highest oxidation state": float(max(oxidation)),
        "lowest oxidation state": float(min(oxidation)),
        **{f"{shell} electrons": electrons for shell, electrons in outer.items()},
        **{f"{block} block": float(element.block == block) for block in _SHELLS},
        **{f"group {group}": float(element.group == group) for group in range(1, _NUM_GROUPS + 1)},
    }


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _logarithm(value: object) -> float:
    number = _number(value)
    return math.log(number) if number > 0 else math.nan
