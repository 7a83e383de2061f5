"""The tasks of the accuracy benchmark: crystals to fit on, crystals that choose settings, crystals that judge."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.matching import reduced_formula
from datamodules.readers import read_source
from datamodules.splits import read_lists, test_ids

FIT, CHOOSE, JUDGE = 0, 1, 2
NUM_JUDGED = 1000
NUM_ENERGIES = 5000


@dataclass(frozen=True)
class Task:
    """One property to learn.

    Attributes:
        name: Its name.
        unit: The target's unit.
        crystals: The crystals.
        target: [M] one value each.
        part: [M] FIT, CHOOSE (fitted on too, once the settings are chosen) or JUDGE.
        how: How the parts were made, in one line.
    """

    name: str
    unit: str
    crystals: list[Crystal]
    target: npt.NDArray[np.float64]
    part: npt.NDArray[np.int64]
    how: str

    def write(self, path: Path) -> str:
        """Write the crystals as flat arrays for the contestants, and return a hash of the content."""
        arrays = {
            "first": np.cumsum([0, *map(len, self.crystals)], dtype=np.int64),
            "lattices": np.stack([crystal.lattice for crystal in self.crystals]),
            "frac_coords": np.concatenate([crystal.frac_coords for crystal in self.crystals]),
            "numbers": np.concatenate([crystal.numbers for crystal in self.crystals]),
            "target": self.target,
            "part": self.part,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{os.getpid()}.{path.name}")
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
        os.replace(temporary, path)
        return hashlib.sha256(b"".join(array.tobytes() for array in arrays.values())).hexdigest()[:16]

    def baselines(self) -> dict[str, float]:
        """Error on the judged crystals of always saying the mean or the median of the fitted ones."""
        fitted, judged = self.target[self.part != JUDGE], self.target[self.part == JUDGE]
        return {
            "mean predictor": float(np.abs(judged - fitted.mean()).mean()),
            "median predictor": float(np.abs(judged - np.median(fitted)).mean()),
        }


def shear_modulus(data: Path) -> Task:
    """log10 of the shear modulus, 800 crystals of trial 1 of the lists of Devi, Butler & Gautam (2024).

    The first 720 are fitted, the last 80 judge together with up to 1,000 records that stand in neither list and
    share no reduced formula with a fitted crystal. The test list is not touched.
    """
    folder = data / "devi2024"
    values = _values(folder / "gv.json.gz", "gv")
    lists = read_lists(folder / "splits" / "gv.json")
    listed = [str(identifier) for identifier in lists["trial1"]["800"]]
    fitted, tail = listed[: len(listed) - len(listed) // 10], listed[len(listed) - len(listed) // 10 :]
    choosing = len(fitted) - len(fitted) // 10
    known = {_formula(values[identifier][0]) for identifier in fitted}
    others = [
        identifier
        for identifier in _shuffled(sorted(values.keys() - set(listed) - {str(i) for i in test_ids(lists)}))
        if _formula(values[identifier][0]) not in known
    ][:NUM_JUDGED]
    return _task(
        "gv",
        "log10(GPa)",
        values,
        (fitted[:choosing], fitted[choosing:], tail + others),
        f"gv, trial 1, 800: the first {len(fitted)} fit, the last tenth of these chooses the learning rate; judged on "
        f"the tail of {len(tail)} and {len(others)} records outside all lists without a formula of a fitted crystal",
    )


def formation_energy(data: Path) -> Task:
    """5,000 formation energies of Materials Project crystals, 1,000 others to judge, no formula in two parts."""
    values = _values(data / "mp_crysxpp" / "data.jsonl.gz", "formation_energy_per_atom")
    groups: dict[str, list[str]] = {}
    for identifier, (crystal, _) in values.items():
        groups.setdefault(_formula(crystal), []).append(identifier)
    ordered = [identifier for formula in _shuffled(sorted(groups)) for identifier in groups[formula]]
    parts, start = [], 0
    for count in (NUM_JUDGED, NUM_ENERGIES // 10, NUM_ENERGIES - NUM_ENERGIES // 10):
        parts.append(ordered[start : start + count])
        start += count
        while start < len(ordered) and _same(values, ordered[start], ordered[start - 1]):
            start += 1  # what is left of a formula that was cut belongs to no part
    judged, choosing, fitted = parts
    return _task(
        "formation_energy",
        "eV/atom",
        values,
        (fitted, choosing, judged),
        f"{len(fitted) + len(choosing)} formation energies of mp_crysxpp fit, {len(choosing)} of these choose the "
        f"learning rate, {len(judged)} others judge; no reduced formula stands in two parts",
    )


TASKS: dict[str, Callable[[Path], Task]] = {"gv": shear_modulus, "formation_energy": formation_energy}

_Values = dict[str, tuple[Crystal, float]]


def _values(file: Path, label: str) -> _Values:
    if not file.is_file():
        raise InputError(f"{file}: no such file; name the folder of data sets with --data")
    return {
        record.id: (record.crystal, float(value))
        for record in read_source(file)
        if record.crystal is not None and isinstance(value := record.labels.get(label), int | float)
    }


def _task(name: str, unit: str, values: _Values, parts: tuple[list[str], list[str], list[str]], how: str) -> Task:
    chosen = [values[identifier] for part in parts for identifier in part]
    return Task(
        name,
        unit,
        [crystal for crystal, _ in chosen],
        np.array([value for _, value in chosen]),
        np.repeat([FIT, CHOOSE, JUDGE], [len(part) for part in parts]),
        how,
    )


def _formula(crystal: Crystal) -> str:
    return reduced_formula(crystal.numbers)


def _same(values: _Values, one: str, other: str) -> bool:
    return _formula(values[one][0]) == _formula(values[other][0])


def _shuffled(names: Sequence[str]) -> list[str]:
    return [names[index] for index in np.random.default_rng(0).permutation(len(names))]
