"""What chemistry already knows about each element, as the encoder's input beside a learned embedding."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

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
    its neighbours in the periodic table. Values that pymatgen does not have take the mean over the elements.

    Returns:
        [NUM_ELEMENTS + 1, D] float32, row z for atomic number z.
    """
    table = _complete_table(_row)
    table = (table - table.mean(axis=0)) / (table.std(axis=0) + 1e-9)
    return torch.tensor(np.vstack([np.zeros(table.shape[1]), table]), dtype=torch.float32)


def element_radii() -> Tensor:
    """Atomic radii (Slater, 1964) from pymatgen's periodic table; a missing one takes the mean.

    Returns:
        [NUM_ELEMENTS + 1] float32 in Angstrom, entry z for atomic number z.
    """
    radii = _complete_table(lambda element: [_number(element.atomic_radius)])[:, 0]
    return torch.tensor([radii.mean(), *radii], dtype=torch.float32)


def _complete_table(row: Callable[[Element], list[float]]) -> npt.NDArray[np.float64]:
    """A row per element, H first; a value that pymatgen does not have takes the mean over the elements."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pymatgen warns for every value it does not have
        table = np.array([row(Element.from_Z(z)) for z in range(1, NUM_ELEMENTS + 1)])
    return np.where(np.isnan(table), np.nanmean(table, axis=0), table)


def _row(element: Element) -> list[float]:
    outer = dict.fromkeys(_SHELLS, 0.0)
    for _, shell, electrons in element.full_electronic_structure[-4:]:
        outer[shell] = float(electrons)
    oxidation = element.common_oxidation_states or (math.nan,)
    return [
        _number(element.X),
        float(element.row),
        float(element.group),
        math.log(element.atomic_mass),
        _number(element.atomic_radius),
        _number(element.average_ionic_radius),
        _number(element.van_der_waals_radius),
        _number(element.mendeleev_no),
        _number(element.ionization_energy),
        _number(element.electron_affinity),
        _logarithm(element.melting_point),
        _number(element.molar_volume),
        _logarithm(element.thermal_conductivity),
        float(max(oxidation)),
        float(min(oxidation)),
        *outer.values(),
        *(float(element.block == block) for block in _SHELLS),
        *(float(element.group == group) for group in range(1, _NUM_GROUPS + 1)),
    ]


def _number(value: object) -> float:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def _logarithm(value: object) -> float:
    number = _number(value)
    return math.log(number) if number > 0 else math.nan
