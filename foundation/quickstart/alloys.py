"""The embedded data set: ordered alloys of seven fcc metals, labelled by effective-medium theory (EMT).

Every crystal is relaxed, cell and positions, and labelled with

- ``formation_energy_per_atom`` (eV/atom) against the relaxed fcc metals,
- ``volume_per_atom`` (Angstrom^3/atom),
- ``bulk_modulus`` and ``shear_modulus`` (GPa), Voigt-Reuss-Hill averages of the elastic constants from six
  finite strains of either sign, ions relaxed (see `foundation.quickstart.elastic`).

EMT (Jacobsen, Stoltze and Norskov, Surf. Sci. 366, 394 (1996), as in ASE) describes the pure metals well and
their alloys roughly: the labels are a consistent benchmark, not reference values for these compounds.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from itertools import combinations
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.units import GPa
from tqdm import tqdm

from datamodules.errors import InputError
from datamodules.properties import KNOWN
from foundation.quickstart.elastic import Emt, elastic_constants, relax
from foundation.quickstart.prototypes import Start, starts

LABELS = ("formation_energy_per_atom", "volume_per_atom", "bulk_modulus", "shear_modulus")

# Two crystals of one formula are the same where both agree; relaxed twins agree a hundred times better.
SAME_ENERGY = 1e-6  # eV/atom
SAME_VOLUME = 1e-5  # relative
# A softest elastic eigenvalue below this (GPa) is zero within what the finite strains resolve.
SOFTEST_STRAIN = 0.5

# Every crystal that holds both metals of one of these pairs, ternaries included, is kept from training. Of the
# 105 ways to choose three pairs without a common metal, this is the median in the standard deviation of the
# held-out shear moduli (12.6 GPa; others leave the test as little as 8): chosen by the labels' spread alone.
HELD_OUT_PAIRS = (("Ag", "Pt"), ("Au", "Cu"), ("Ni", "Pd"))


@dataclass(frozen=True)
class Outcome:
    """One crystal after relaxation and straining.

    Attributes:
        start: What it started from.
        atoms: The crystal as relaxation left it.
        energy: EMT energy in eV/atom.
        moduli: Bulk and shear modulus in GPa; None where rejected.
        reason: Why it is rejected; "" where it is not.
        detail: The number behind the reason.
    """

    start: Start
    atoms: Atoms
    energy: float
    moduli: tuple[float, float] | None = None
    reason: str = ""
    detail: str = ""

    @property
    def volume(self) -> float:
        """Volume in Angstrom^3/atom."""
        return float(self.atoms.get_volume()) / len(self.atoms)


@dataclass(frozen=True)
class Split:
    """Ids of the crystals for each step of the benchmark; no crystal stands in two of them.

    Attributes:
        held_out: Alloy systems that no training crystal belongs to.
        pretraining: Crystals to pretrain on.
        adaptation: Crystals whose held-back label the adaptation learns from.
        test: Crystals it is judged on, all of held-out systems.
    """

    held_out: tuple[str, ...]
    pretraining: tuple[str, ...]
    adaptation: tuple[str, ...]
    test: tuple[str, ...]


def label(start: Start) -> Outcome:
    """Relax and strain one crystal."""
    emt = Emt(start.atoms())
    atoms = emt.atoms
    relaxed = relax(emt)
    total, stress, forces = emt()
    energy = total / len(atoms)
    if not relaxed:
        force, pressure = abs(forces).max(), abs(stress).max() / GPa
        detail = f"largest force {force:.2g} eV/Angstrom, stress {pressure:.2g} GPa"
        return Outcome(start, atoms, energy, None, "not_relaxed", detail)
    elastic = elastic_constants(emt)
    if elastic.softest_ions <= 0:
        detail = f"softest displacement {elastic.softest_ions:.3f} eV/Angstrom^2"
        return Outcome(start, atoms, energy, None, "unstable_ions", detail)
    if elastic.softest_strain < SOFTEST_STRAIN:
        detail = f"lowest elastic eigenvalue {elastic.softest_strain:.2f} GPa"
        return Outcome(start, atoms, energy, None, "unstable_elastic", detail)
    return Outcome(start, atoms, energy, elastic.moduli())


def label_all(chosen: Iterable[Start], workers: int = 2) -> Iterator[Outcome]:
    """Outcomes in the order of `chosen`, with a progress bar on a terminal.

    Args:
        chosen: Crystals to label.
        workers: Processes; 1 stays in this one.
    """
    chosen = list(chosen)
    bar: Any = tqdm(total=len(chosen), desc="labelling alloys", unit="crystal", disable=None)
    with bar:
        if workers == 1:
            for start in chosen:
                yield label(start)
                bar.update()
            return
        # Spawned, not forked: the caller may hold threads, which a fork would leave in an unknown state.
        with get_context("spawn").Pool(workers) as pool:
            for outcome in pool.imap(label, chosen, chunksize=8):
                yield outcome
                bar.update()


def without_duplicates(outcomes: Iterable[Outcome]) -> list[Outcome]:
    """Reject each crystal that relaxed into an earlier one: same formula, energy and volume."""
    kept: dict[str, list[Outcome]] = {}
    result = []
    for outcome in outcomes:
        if not outcome.reason:
            same_formula = kept.setdefault(outcome.atoms.symbols.formula.reduce()[0].format("hill"), [])
            twin = next((other for other in same_formula if _same(outcome, other)), None)
            if twin is None:
                same_formula.append(outcome)
            else:
                detail = f"relaxed into {twin.start.id}"
                outcome = Outcome(outcome.start, outcome.atoms, outcome.energy, None, "duplicate", detail)
        result.append(outcome)
    return result


def _same(one: Outcome, other: Outcome) -> bool:
    close_volume = abs(one.volume / other.volume - 1) < SAME_VOLUME
    return close_volume and abs(one.energy - other.energy) < SAME_ENERGY


def _record(outcome: Outcome, elemental: Mapping[str, float]) -> dict[str, Any]:
    """The JSON-lines record of an accepted crystal; rounded beyond what the calculator resolves."""
    symbols = outcome.atoms.get_chemical_symbols()
    reference = sum(elemental[symbol] for symbol in symbols) / len(symbols)
    assert outcome.moduli is not None  # accepted
    values = (outcome.energy - reference, outcome.volume, *outcome.moduli)
    structure = {
        # + 0.0 turns -0 into 0, here and in an element's own formation energy.
        "lattice_mat": (outcome.atoms.cell.array.round(8) + 0.0).tolist(),
        "coords": (outcome.atoms.get_scaled_positions(wrap=False).round(8) + 0.0).tolist(),
        "elements": symbols,
        "cartesian": False,
    }
    return {
        "id": outcome.start.id,
        "system": outcome.start.system,
        "structure": structure,
        "labels": {name: round(value, 6) + 0.0 for name, value in zip(LABELS, values, strict=True)},
        "units": {name: KNOWN[name].unit for name in LABELS},
    }


def generate(out: Path, workers: int = 2) -> tuple[Path, Path]:
    """Generate the data set: the same bytes on every run.

    Args:
        out: Folder to write to; made where it does not exist.
        workers: Processes to use.

    Returns:
        Paths of ``alloys.jsonl``, a crystal a line, and ``alloys_rejected.csv`` (id, reason, detail).

    Raises:
        InputError: If `out` is not a folder.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: is a file; give a folder to write the alloys to")
    outcomes = without_duplicates(label_all(starts(), workers))
    elemental = {o.start.system: o.energy for o in outcomes if o.start.prototype.name == "A1"}
    accepted = [json.dumps(_record(o, elemental)) + "\n" for o in outcomes if not o.reason]
    rejected = StringIO()
    table = csv.writer(rejected, lineterminator="\n")
    table.writerow(["id", "reason", "detail"])
    table.writerows([o.start.id, o.reason, o.detail] for o in outcomes if o.reason)
    out.mkdir(parents=True, exist_ok=True)
    return (
        _write(out / "alloys.jsonl", "".join(accepted)),
        _write(out / "alloys_rejected.csv", rejected.getvalue()),
    )


def _write(path: Path, text: str) -> Path:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)
    return path


def is_held_out(system: str) -> bool:
    """Whether an alloy system such as ``Ag-Al-Cu`` holds both metals of a held-out pair."""
    return any(pair in HELD_OUT_PAIRS for pair in combinations(sorted(system.split("-")), 2))


def split_by_system(systems: Mapping[str, str], adaptation: int = 50, test: int = 100) -> Split:
    """Divide the crystals so that the test asks about chemistry that no training crystal shows.

    Held out are the `HELD_OUT_PAIRS` and every ternary system that contains one: the two metals of a test
    crystal's pair never meet in training. The adaptation crystals belong to the systems of pretraining but are
    not pretrained on, so that frozen features meet crystals as new in adaptation as in the test. Held-out crystals
    beyond `test` stay unused. The order is that of a hash of the id, as good as random and the same everywhere.

    Args:
        systems: Alloy system of each crystal by id, such as ``{"Cu3Au-L12": "Au-Cu"}``.
        adaptation: Crystals to adapt on.
        test: Crystals to judge on.

    Raises:
        InputError: If there are too few crystals.
    """
    shuffled = sorted(systems, key=lambda id: hashlib.sha256(id.encode()).hexdigest())
    unseen = [id for id in shuffled if is_held_out(systems[id])]
    seen = [id for id in shuffled if not is_held_out(systems[id])]
    if len(unseen) < test or len(seen) <= adaptation:
        raise InputError(
            f"alloys: {len(unseen)} crystals of held-out systems and {len(seen)} others cannot give "
            f"{test} for the test and {adaptation} for adaptation; ask for fewer"
        )
    held_out = tuple(sorted({systems[id] for id in unseen}))
    return Split(held_out, tuple(seen[adaptation:]), tuple(seen[:adaptation]), tuple(unseen[:test]))
