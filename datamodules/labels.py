"""The labels of several sources under one vocabulary: units agreed, shapes checked, levels found."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from datamodules.errors import InputError
from datamodules.properties import KNOWN, WEIGHT, Property, resolve
from datamodules.readers.record import Label
from datamodules.tensors import rank_of

_COMPONENTS = {3, 6, 9}  # of a vector, a symmetric and a full second-rank tensor


class LabelSchema:
    """Collects what the sources say of each property and refuses what contradicts.

    Args:
        declared: Properties whose unit (and log flag) the user declared.
    """

    def __init__(self, declared: Sequence[Property] = ()) -> None:
        self._declared = {prop.name: prop for prop in declared}
        self._units: dict[str, dict[str, str | None]] = {}  # property -> source -> unit
        self._depth: dict[str, int] = {}
        self._per_atom: dict[str, bool] = {}
        self._lengths: dict[str, set[int]] = {}
        self._boolean: dict[str, bool] = {}

    @property
    def seen(self) -> set[str]:
        """Every property name met in a source, labelled or not."""
        return set(self._units)

    def note_unit(self, source: str, name: str, unit: str | None) -> None:
        """Take note of the unit under which a source gives a property (None: it states none).

        Raises:
            InputError: If it contradicts the known unit, the declared one, or that of another source.
        """
        by_source = self._units.setdefault(name, {})
        if source in by_source and by_source[source] == unit:
            return
        if unit is not None:
            try:
                resolve(name, unit)
            except InputError as error:
                raise InputError(f"source {source}: {error}") from None
            others = {"--property": self._declared[name].unit} if name in self._declared else {}
            for other, stated in {**others, **by_source}.items():
                if stated is not None and stated != unit:
                    raise InputError(
                        f"property {name}: source {source} has unit {unit!r}, {other} says {stated!r}; "
                        "convert the values or import them under another name with --map old=new"
                    )
        by_source[source] = unit if unit is not None else by_source.get(source)

    def known(self, name: str) -> Property | None:
        """What is declared or known of a property."""
        return self._declared.get(name) or KNOWN.get(name)

    def refuse(self, name: str, label: Label, atoms: int) -> str | None:
        """The reason why a label cannot be stored, or None for a good one.

        "not_a_number": text; "nonfinite_label": NaN or infinite; "wrong_shape": ragged, or of another
        nesting depth than the property has; "wrong_length": a per-atom list without one entry for each
        of the ``atoms`` atoms; "not_0_or_1", "no_such_class": for a class.
        """
        if isinstance(label, str):
            return "not_a_number"
        depths = _depths(label)
        if math.inf in depths:
            return "nonfinite_label"
        known = self.known(name)
        depth = min(depths)
        if known is not None and known.formula:
            expected = rank_of(known.formula) + (known.level == "atom")
        elif known is not None and known.kind in ("scalar", "class") and _is_stated(known):
            expected = int(known.level == "atom")
        else:
            expected = self._depth.get(name, int(depth))
        if len(depths) > 1 or depth != expected:
            return "wrong_shape"
        length = len(label) if isinstance(label, list) else 0
        if known is not None and known.level == "atom" and length != atoms:
            return "wrong_length"
        if known is not None and known.kind == "class" and label not in range(known.classes or 2):
            return "no_such_class" if known.classes else "not_0_or_1"
        self._depth[name] = int(depth)
        self._per_atom[name] = self._per_atom.get(name, True) and length == atoms
        self._lengths.setdefault(name, set()).add(length)
        self._boolean[name] = self._boolean.get(name, True) and isinstance(label, bool)
        return None

    def properties(self) -> list[Property]:
        """The vocabulary of the accepted labels, in the order of first appearance.

        A name without an entry in the vocabulary gets its level and kind from its labels: lists with
        one entry per atom in crystals of different sizes are per-atom labels; other flat lists are
        spectra, but tensors if they have 3, 6 or 9 entries; truth values are a class.
        """
        return [self._property(name) for name in self._units if name in self._depth]

    def framed(self) -> set[str]:
        """Names of the labels that hold only in the frame and atom order of their own structure."""
        names = {prop.name for prop in self.properties() if prop.level == "atom" or prop.kind == "tensor"}
        return names | {name + WEIGHT for name in names}

    def warning(self) -> str | None:
        """One line that names the sources without units and the units taken instead; None if all is stated."""
        bare: dict[str, list[str]] = {}
        for name, by_source in self._units.items():
            if name in self._depth and name not in self._declared and not _boolean_class(name, self._boolean):
                for source in (source for source, unit in by_source.items() if unit is None):
                    bare.setdefault(source, []).append(f"{name} ({self._unit(name) or 'no unit'})")
        if not bare:
            return None
        listed = "; ".join(f"{source}: {', '.join(names)}" for source, names in bare.items())
        return f"warning: no units stated, taken as {listed}; declare them with --property name:unit"

    def _unit(self, name: str) -> str:
        if name in self._declared:
            return self._declared[name].unit
        stated = next((unit for unit in self._units[name].values() if unit is not None), None)
        return resolve(name, stated).unit

    def _property(self, name: str) -> Property:
        prop = replace(self._declared.get(name) or KNOWN.get(name) or Property(name), unit=self._unit(name))
        if _is_stated(prop):
            return prop
        depth = self._depth[name]
        if depth == 0:
            return replace(prop, kind="class") if self._boolean[name] else prop
        if self._per_atom[name] and len(self._lengths[name]) > 1:
            # irreps "" = not stated: the values are kept as they are for whoever knows better
            return replace(prop, level="atom") if depth == 1 else replace(prop, level="atom", kind="tensor", irreps="")
        spectrum = depth == 1 and not self._lengths[name] <= _COMPONENTS
        return replace(prop, kind="spectrum" if spectrum else "tensor", irreps="")


def _is_stated(prop: Property) -> bool:
    """Whether level and kind are known, and not to be found from the labels."""
    return prop.name in KNOWN or prop.name.endswith(WEIGHT) or prop.kind != "scalar" or prop.level == "atom"


def _boolean_class(name: str, boolean: dict[str, bool]) -> bool:
    return boolean[name] or (name in KNOWN and KNOWN[name].unit == "")


def _depths(label: Any) -> set[float]:
    """Nesting depths at which numbers stand in a label; infinity stands for a non-finite number."""
    if isinstance(label, list):
        return {1 + depth for item in label if item is not None for depth in _depths(item)}
    return {0} if math.isfinite(label) else {math.inf}
