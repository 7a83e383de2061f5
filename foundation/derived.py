"""What follows from a tensor: moduli, stability, dielectric constant, refractive index, piezoelectric modulus."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.tensors import to_voigt
from heads import Head, SpectrumHead, TensorHead
from heads.spectrum import last_peak

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Quantity:
    """One number that follows from a tensor.

    Attributes:
        name: Its name.
        unit: Its unit.
        of: [3, 3, ...] tensor, in the unit of its property, to the number; NaN where there is none.
    """

    name: str
    unit: str
    of: Callable[[Array], float]

    @property
    def column(self) -> str:
        """Column heading with the unit."""
        return f"{self.name} ({self.unit})" if self.unit else self.name


def _elastic(name: str, tensor: Array) -> float:
    """A property of pymatgen's elastic tensor, made from stiffnesses in GPa."""
    from pymatgen.analysis.elasticity import ElasticTensor

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of tensors that are not quite symmetric or not definite
        try:
            return float(getattr(ElasticTensor.from_voigt(to_voigt(tensor, 4)), name))
        except np.linalg.LinAlgError:
            return float("nan")


def _young(tensor: Array) -> float:
    """Young's modulus of the polycrystal, GPa; pymatgen gives it in Pa."""
    return _elastic("y_mod", tensor) / 1e9


def _is_stable(tensor: Array) -> float:
    """1 where no small strain lowers the energy: all eigenvalues of the stiffness matrix are positive."""
    return float(np.linalg.eigvalsh(to_voigt(tensor, 4))[0] > 0)


def _mean_eigenvalue(tensor: Array) -> float:
    return float(np.trace(tensor)) / 3


def _eigenvalue_spread(tensor: Array) -> float:
    """The largest eigenvalue less the smallest."""
    values = np.linalg.eigvalsh(tensor)
    return float(values[-1] - values[0])


def _indices(tensor: Array) -> Array:
    """[3] refractive indices along the principal axes of a dielectric tensor; NaN where it is negative."""
    values = np.linalg.eigvalsh(tensor)
    return np.sqrt(np.where(values >= 0, values, np.nan))


def _refractive_index(tensor: Array) -> float:
    """Of the polycrystal: the root of the mean eigenvalue (Petousis et al., 2017)."""
    mean = _mean_eigenvalue(tensor)
    return float(np.sqrt(mean)) if mean >= 0 else float("nan")


def _index_anisotropy(tensor: Array) -> float:
    found = _indices(tensor)
    return float(found.max() - found.min())


def _largest_longitudinal(tensor: Array) -> float:
    """The largest |e_ijk n_i n_j n_k| over directions n, C/m^2."""
    symmetric = sum(tensor.transpose(order) for order in ((0, 1, 2), (1, 0, 2), (2, 1, 0))) / 3
    size = float(np.linalg.norm(symmetric))
    if size == 0:
        return 0.0
    # Along two thousand directions, then uphill from the best; the shift makes every step go up.
    count = np.arange(2000) + 0.5
    polar, turn = np.arccos(1 - 2 * count / len(count)), np.pi * (1 + 5**0.5) * count
    ways = np.stack([np.cos(turn) * np.sin(polar), np.sin(turn) * np.sin(polar), np.cos(polar)], axis=1)
    ways = ways[np.argsort(-np.einsum("ijk,ni,nj,nk->n", symmetric, ways, ways, ways))[:8]]
    for _ in range(100):
        ways = np.einsum("ijk,nj,nk->ni", symmetric, ways, ways) + size * ways
        ways /= np.linalg.norm(ways, axis=1, keepdims=True)
    return float(np.einsum("ijk,ni,nj,nk->n", symmetric, ways, ways, ways).max())


_ELASTIC = (
    *(Quantity(f"{letter.upper()}_{kind}", "GPa", partial(_elastic, f"{letter}_{kind.lower()}"))
      for letter in "kg" for kind in ("Voigt", "Reuss", "VRH")),
    Quantity("youngs_modulus", "GPa", _young),
    Quantity("universal_anisotropy", "", partial(_elastic, "universal_anisotropy")),
    Quantity("mechanically_stable", "", _is_stable),
)  # fmt: skip
_DIELECTRIC = (
    Quantity("dielectric_constant", "", _mean_eigenvalue),
    Quantity("dielectric_anisotropy", "", _eigenvalue_spread),
)
_OPTICAL = (
    Quantity("refractive_index", "", _refractive_index),
    Quantity("refractive_index_anisotropy", "", _index_anisotropy),
)
_PIEZOELECTRIC = (Quantity("largest_piezoelectric_modulus", "C/m^2", _largest_longitudinal),)

# Words that name a dielectric tensor without what the ions add: light is too fast for them, and n^2 is of it alone.
_ELECTRONIC = {"electronic", "optical", "inf", "infinity"}

_CLASS = Quantity("class", "", lambda probabilities: float(np.argmax(probabilities)))

# What a head's ``derive`` stands for.
_BY_KIND: Mapping[str, tuple[Quantity, ...]] = {
    "elastic": _ELASTIC,
    "dielectric": _DIELECTRIC,
    "piezoelectric": _PIEZOELECTRIC,
}


def quantities(head: Head) -> tuple[Quantity, ...]:
    """What is told beside the predictions of a head."""
    if isinstance(head, TensorHead):
        found = _BY_KIND[head.derive] if head.derive else ()
        is_optical = head.derive == "dielectric" and _ELECTRONIC & set(head.property.name.lower().split("_"))
        return (*found, *_OPTICAL) if is_optical else found
    if isinstance(head, SpectrumHead):
        return (Quantity("last_peak", head.grid_unit, partial(_last_peak, head.grid.double().cpu())),)
    return (_CLASS,) if head.is_classifier and not head.is_single else ()


def _last_peak(grid: Tensor, spectrum: Array) -> float:
    return float(last_peak(torch.from_numpy(spectrum)[None], grid))
