"""Predictions as the cells of a table: numbers, nested values as JSON, and what follows from them."""

from __future__ import annotations

import json
from typing import Any, Literal, NamedTuple

import numpy as np

from datamodules.tensors import has_voigt, rank_of, to_voigt
from foundation.derived import quantities
from foundation.inference import SPREAD, Ensemble, Values
from heads import Head

TensorFormat = Literal["full", "voigt"]


class Columns(NamedTuple):
    """The columns of the predictions of an ensemble.

    Attributes:
        ensemble: What predicts.
        form: Whether tensors are told in full, [3, 3, ...], or in Voigt notation where their indices allow it: in the
            order xx, yy, zz, yz, xz, xy, without factors, as stiffnesses are.
    """

    ensemble: Ensemble
    form: TensorFormat = "full"

    @property
    def never_voigt(self) -> list[str]:
        """Tensors that are told in full in any case, since their indices do not allow Voigt notation."""
        formulas = {name: getattr(head, "formula", "") for name, head in self.ensemble.heads.items()}
        return [
            name for name, formula in formulas.items() if formula and rank_of(formula) > 1 and not has_voigt(formula)
        ]

    @property
    def names(self) -> list[str]:
        """One per property and, of several members, one for their spread; then what follows from a tensor."""
        found = []
        for name, head in self.ensemble.heads.items():
            found.append(head.property.column)
            if len(self.ensemble) > 1:
                found.append(head.property.column + SPREAD)
            found += [f"{name}.{quantity.column}" for quantity in quantities(head)]
        return found

    def cells(self, predicted: dict[str, Values]) -> list[str]:
        """The cells of one structure.

        Args:
            predicted: Property name -> [M, ...] values of the members, [N, M, ...] of labels of atoms.
        """
        found = []
        for name, head in self.ensemble.heads.items():
            members = predicted[name]
            axis = 1 if head.property.level == "atom" else 0
            mean = members.mean(axis=axis)
            found.append(self._value(head, mean))
            if len(self.ensemble) > 1:
                spread = members.std(axis=axis, ddof=1)
                # Of several numbers the norm, which no rotation changes.
                size = np.sqrt(np.square(spread).reshape(len(spread) if axis else 1, -1).sum(axis=1))
                found.append(f"{size[0]:.3g}" if axis == 0 else _json(size, 3))
            found += [f"{quantity.of(mean):.6g}" for quantity in quantities(head)]
        return found

    def _value(self, head: Head, mean: Any) -> str:
        if np.ndim(mean) == 0:
            return f"{mean:.6g}"
        formula = getattr(head, "formula", "")
        if self.form == "voigt" and formula and has_voigt(formula):
            mean = to_voigt(mean, rank_of(formula))
        return _json(mean, 6)


def _json(values: Any, digits: int) -> str:
    """Nested values with so many significant digits."""

    def short(value: Any) -> Any:
        return [short(item) for item in value] if isinstance(value, list) else float(f"{value:.{digits}g}")

    return json.dumps(short(np.asarray(values).tolist()))
