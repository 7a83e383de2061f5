"""The labels of several sources under one vocabulary: units agreed, shapes checked, levels found."""

from __future__ import annotations

import math
from collections import Counter
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
        self._shapes: dict[str, Counter[tuple[int, ...]]] = {}
        self._of_atoms: dict[str, Counter[int]] = {}  # lengths of the labels with one entry per atom
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
        nesting depth than the property is known or declared to have; "wrong_length": a per-atom list
        without one entry for each of the ``atoms`` atoms; "not_0_or_1", "no_such_class": for a class.
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
        elif known is not None and _is_stated(known):
            expected = int(known.level == "atom" or known.kind == "spectrum")
        else:
            expected = int(depth)  # that of most labels counts, see ``odd``
        shape = shape_of(label)
        if len(depths) > 1 or depth != expected or shape is None:
            return "wrong_shape"
        length = len(label) if isinstance(label, list) else 0
        if known is not None and known.level == "atom" and length != atoms:
            return "wrong_length"
        if known is not None and known.kind == "class" and label not in range(known.classes or 2):
            return "no_such_class" if known.classes else "not_0_or_1"
        self._shapes.setdefault(name, Counter())[shape] += 1
        if length == atoms:
            self._of_atoms.setdefault(name, Counter())[length] += 1
        self._boolean[name] = self._boolean.get(name, True) and isinstance(label, bool)
        return None

    def properties(self) -> list[Property]:
        """The vocabulary of the accepted labels, in the order of first appearance.

        A name without an entry in the vocabulary gets its level and kind from most of its labels: lists
        with one entry per atom in crystals of different sizes are per-atom labels; other flat lists are
        spectra, but tensors if they have 3, 6 or 9 entries; truth values are a class.
        """
        return [self._property(name) for name in self._units if name in self._shapes]

    def usual_shapes(self) -> dict[str, tuple[Property, tuple[int, ...]]]:
        """Properties whose shape is nowhere stated, and that of most of their labels: of an atom where each has one."""
        found = {}
        for prop in self.properties():
            known, depth = self.known(prop.name), self._depth(prop.name)
            if known is None or not _is_stated(known):
                counts: Counter[tuple[int, ...]] = Counter()
                for shape, count in self._shapes[prop.name].items():
                    if len(shape) == depth:
                        counts[shape[1:] if prop.level == "atom" else shape] += count
                found[prop.name] = (prop, counts.most_common(1)[0][0])
        return found

    def framed(self) -> set[str]:
        """Names of the labels that hold only in the frame and atom order of their own structure."""
        names = {prop.name for prop in self.properties() if prop.level == "atom" or prop.kind == "tensor"}
        return names | {name + WEIGHT for name in names}

    def warning(self) -> str | None:
        """One line that names the sources without units and the units taken instead; None if all is stated."""
        bare: dict[str, list[str]] = {}
        for name, by_source in self._units.items():
            if name in self._shapes and name not in self._declared and not _boolean_class(name, self._boolean):
                for source in (source for source, unit in by_source.items() if unit is None):
                    bare.setdefault(source, []).append(f"{name} ({self._unit(name) or 'no unit'})")
        if not bare:
            return None
        listed = "; ".join(f"{source}: {', '.join(names)}" for source, names in bare.items())
        return f"warning: no units stated, taken as {listed}; declare them with --property name:unit"

    def _depth(self, name: str) -> int:
        """How deep most labels are nested."""
        counts: Counter[int] = Counter()
        for shape, count in self._shapes[name].items():
            counts[len(shape)] += count
        return counts.most_common(1)[0][0]

    def _unit(self, name: str) -> str:
        if name in self._declared:
            return self._declared[name].unit
        stated = next((unit for unit in self._units[name].values() if unit is not None), None)
        return resolve(name, stated).unit

    def _property(self, name: str) -> Property:
        prop = replace(self._declared.get(name) or KNOWN.get(name) or Property(name), unit=self._unit(name))
        if _is_stated(prop):
            return prop
        depth = self._depth(name)
        if depth == 0:
            return replace(prop, kind="class") if self._boolean[name] else prop
        shapes, of_atoms = self._shapes[name], self._of_atoms.get(name, Counter())
        if 2 * of_atoms.total() > shapes.total() and len(of_atoms) > 1:
            # irreps "" = not stated: the values are kept as they are for whoever knows better
            return replace(prop, level="atom") if depth == 1 else replace(prop, level="atom", kind="tensor", irreps="")
        usual = next(shape for shape, _ in shapes.most_common() if len(shape) == depth)
        spectrum = depth == 1 and usual[0] not in _COMPONENTS
        return replace(prop, kind="spectrum" if spectrum else "tensor", irreps="")


def _is_stated(prop: Property) -> bool:
    """Whether level and kind are known, and not to be found from the labels."""
    return prop.name in KNOWN or prop.name.endswith(WEIGHT) or prop.kind != "scalar" or prop.level == "atom"


def _boolean_class(name: str, boolean: dict[str, bool]) -> bool:
    return boolean[name] or (name in KNOWN and KNOWN[name].unit == "")


def odd(prop: Property, usual: tuple[int, ...], label: Label, atoms: int) -> tuple[str, str] | None:
    """Why a label does not go with the others of its property, reason and detail; None where it does.

    Args:
        prop: The property, whose shape is nowhere stated.
        usual: The shape of most labels, of one atom where each has one.
        label: The label.
        atoms: Atoms of its crystal.
    """
    shape = shape_of(label) or ()
    if prop.level == "atom":
        if shape[:1] != (atoms,):
            return "wrong_length", f"{len(label) if isinstance(label, list) else 0} entries for {atoms} atoms"
        shape = shape[1:]
    if shape != usual:
        return "wrong_shape", f"has the shape {shape}, most labels have {usual}"
    if prop.level == "crystal" and _has_null(label):
        return "nonfinite_label", "has a null; if each atom has a label, declare --property name:unit:atom"
    return None


def shape_of(label: Any) -> tuple[int, ...] | None:
    """Lengths of nested lists, () of a number; None for ragged ones. What is null has any shape."""
    if not isinstance(label, list):
        return ()
    inner = {shape_of(item) for item in label if item is not None} or {()}
    only = inner.pop()
    return None if inner or only is None else (len(label), *only)


def _has_null(label: Any) -> bool:
    return any(map(_has_null, label)) if isinstance(label, list) else label is None


def _depths(label: Any) -> set[float]:
    """Nesting depths at which numbers stand in a label; infinity stands for a non-finite number."""
    if isinstance(label, list):
        return {1 + depth for item in label if item is not None for depth in _depths(item)}
    return {0} if math.isfinite(label) else {math.inf}
