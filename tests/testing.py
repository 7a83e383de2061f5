"""What the suites share: crystals, models small enough to run at once, and checks of symmetry.

Every check takes an encoder, computes the features of atoms of a crystal and of its changed self, and fails
where the two do not relate as physics says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from e3nn import o3
from torch import Tensor

from datamodules.batching import CrystalBatch, build_graphs
from datamodules.crystals import Crystal
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN
from datamodules.store import write_store
from datamodules.tensors import to_full
from foundation.encoder.encoder import EquivariantEncoder

TINY_ENCODER: dict[str, Any] = {
    "irreps": "8x0e+4x1o+2x2e",
    "num_blocks": 2,
    "readout_channels": 8,
    "num_radial": 6,
    "radial_hidden": 8,
}
TINY = [word for key, value in TINY_ENCODER.items() for word in (f"--encoder.{key}", str(value))]
TINY += ["--data.val_share", "0.1", "--data.test_share", "0.1"]
QUIET = ["--wandb", "off", "--compile", "false", "--trainer.accelerator", "cpu"]
LABELS = ("formation_energy_per_atom", "band_gap", "shear_modulus")

_PROTOTYPES = {  # fractional coordinates, and which of a compound's elements stands there
    "rock salt": (0.5 * (np.ones((3, 3)) - np.eye(3)), [(0, 0, 0), (0.5, 0.5, 0.5)], [0, 1]),
    "CsCl": (0.62 * np.eye(3), [(0, 0, 0), (0.5, 0.5, 0.5)], [0, 1]),
    "perovskite": (
        0.8 * np.eye(3),
        [(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)],
        [0, 2, 1, 1, 1],
    ),
}
_CATIONS = (3, 4, 11, 12, 19, 20, 37, 38, 55, 56, 26, 28)
_ANIONS = (8, 9, 16, 17, 35)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Make tensors of this type by default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def tiny_encoder(seed: int = 0, **changes: Any) -> EquivariantEncoder:
    """A small encoder with random weights of the default type."""
    torch.manual_seed(seed)
    return EquivariantEncoder(**(TINY_ENCODER | changes)).to(torch.get_default_dtype()).eval()


def batch_of(crystals: Sequence[Crystal], recipe: NeighborRecipe | None = None, labels: Any = None) -> CrystalBatch:
    """Crystals as one batch."""
    given = None if labels is None else torch.as_tensor(labels, dtype=torch.get_default_dtype())
    return build_graphs(crystals, recipe or NeighborRecipe()).gather(range(len(crystals)), given)


def compounds(count: int = 60, seed: int = 0) -> list[Crystal]:
    """Ionic crystals of three prototypes, slightly distorted, with 2 to 5 atoms."""
    random = np.random.default_rng(seed)
    made = []
    for index in range(count):
        lattice, coords, places = list(_PROTOTYPES.values())[index % len(_PROTOTYPES)]
        first, third = random.choice(_CATIONS, size=2, replace=False)
        numbers = np.array([first, random.choice(_ANIONS), third])[places]
        edge = 4.6 + 0.02 * float(numbers.mean()) + 0.2 * random.random()
        moved = np.array(coords) + random.normal(scale=0.01, size=(len(coords), 3))
        strained = edge * lattice @ (np.eye(3) + random.normal(scale=0.01, size=(3, 3)))
        made.append(Crystal(strained, moved, numbers.astype(np.int64), f"c{index}"))
    return made


def rock_salt() -> Crystal:
    """NaCl: every distance is degenerate."""
    return Crystal(2.82 * (np.ones((3, 3)) - np.eye(3)), np.array([(0, 0, 0), (0.5, 0.5, 0.5)]), np.array([11, 17]))


def random_crystal(num_atoms: int = 6, seed: int = 0) -> Crystal:
    """A low-symmetry crystal with atoms at least 1.5 Angstrom apart."""
    random = np.random.default_rng(seed)
    lattice = (18.0 * num_atoms) ** (1 / 3) * (np.eye(3) + 0.15 * random.normal(size=(3, 3)))
    images = np.stack(np.meshgrid(*[(-1, 0, 1)] * 3), axis=-1).reshape(-1, 3)
    placed: list[Any] = []
    while len(placed) < num_atoms:
        point = random.random(3)
        vectors = [((point - other) + images) @ lattice for other in placed]
        if all(np.linalg.norm(vector, axis=1).min() > 1.5 for vector in vectors):
            placed.append(point)
    return Crystal(lattice, np.array(placed), random.integers(1, 90, num_atoms), f"random{seed}")


def make_store(path: Path, crystals: Sequence[Crystal]) -> Path:
    """A store of crystals with three labels that follow from composition and volume, some of them missing."""
    random = np.random.default_rng(1)
    spread = np.array([float(crystal.numbers.std()) for crystal in crystals])
    volume = np.array([crystal.volume / len(crystal) for crystal in crystals])
    labels = {
        "formation_energy_per_atom": -0.1 * spread - 0.02 * volume,
        "band_gap": np.maximum(0.0, 0.3 * volume - 4.0 + random.normal(size=len(crystals))),
        "shear_modulus": 2000.0 / volume * (1 + 0.1 * random.random(len(crystals))),
    }
    labels["band_gap"][random.random(len(crystals)) < 0.3] = np.nan
    labels["shear_modulus"][random.random(len(crystals)) < 0.2] = np.nan
    write_store(path, crystals, labels, [KNOWN[name] for name in LABELS])
    return path


def make_tensor_store(path: Path, crystals: Sequence[Crystal]) -> Path:
    """A store of crystals with labels of every kind, some of them missing."""
    random = np.random.default_rng(2)
    labels: dict[str, list[Any]] = {}
    for crystal in crystals:
        size = float(crystal.numbers.mean())
        stretched = np.eye(6) * (1 + 0.2 * random.random(6)) + 0.3
        charges = (crystal.numbers - crystal.numbers.mean())[:, None, None] / 10 * np.eye(3)
        made = {
            "formation_energy_per_atom": -size / 20,
            "band_gap": max(0.0, 2.0 - size / 20 + random.normal()),
            "shear_modulus": 20 + size,
            "elastic_tensor": to_full(size * stretched, 4).tolist(),  # type: ignore[union-attr]
            "dielectric_total": (np.eye(3) * (1 + size / 10)).tolist(),
            "piezoelectric_tensor": random.normal(size=(3, 3, 3)).tolist(),
            "born_charges": charges.tolist(),
            "magmom_site": [None if z < 9 else z / 20 for z in crystal.numbers.tolist()],
            "phonon_dos": np.exp(-0.5 * ((np.arange(51) - size) / 4) ** 2).tolist(),
        }
        piezo = np.array(made["piezoelectric_tensor"])
        made["piezoelectric_tensor"] = ((piezo + piezo.transpose(0, 2, 1)) / 2).tolist()
        for name, value in made.items():
            there = random.random() > 0.2 and value != [None] * len(crystal)
            labels.setdefault(name, []).append(value if there else None)
    write_store(path, crystals, labels, [KNOWN[name] for name in labels])
    return path


def supercell(crystal: Crystal, repeats: tuple[int, int, int] = (2, 1, 1)) -> Crystal:
    """The same crystal in a larger cell; copies of an atom stand one after another."""
    cells = np.stack(np.meshgrid(*map(np.arange, repeats), indexing="ij"), axis=-1).reshape(-1, 3)
    coords = (crystal.frac_coords[:, None] + cells[None]).reshape(-1, 3) / np.array(repeats)
    lattice = crystal.lattice * np.array(repeats)[:, None]
    return Crystal(lattice, coords, np.repeat(crystal.numbers, len(cells)), crystal.id)


def other_cell(crystal: Crystal, seed: int = 0) -> Crystal:
    """The same crystal in another, skewed cell of the same volume, its atoms moved by lattice vectors."""
    random = np.random.default_rng(seed)
    change = np.eye(3, dtype=np.int64)
    for row, column, sign in ((0, 1, 1), (1, 2, -1), (2, 0, 1), (0, 2, 1)):
        change[row] += sign * change[column]
    coords = crystal.frac_coords @ np.linalg.inv(change) + random.integers(-2, 3, size=(len(crystal), 3))
    return replace(crystal, lattice=change @ crystal.lattice, frac_coords=coords)


def moved(crystal: Crystal, size: float, seed: int = 0) -> Crystal:
    """The crystal with every atom displaced by random vectors of this length in Angstrom."""
    step = np.random.default_rng(seed).normal(size=(len(crystal), 3))
    step *= size / np.linalg.norm(step, axis=1, keepdims=True)
    return replace(crystal, frac_coords=crystal.frac_coords + step @ np.linalg.inv(crystal.lattice))


@torch.no_grad()
def atom_features(encoder: Any, *crystals: Crystal) -> Tensor:
    """[N, D] features of all atoms of crystals in one batch."""
    features: Tensor = encoder(batch_of(crystals, encoder.recipe))
    return features


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    """Equal within a tolerance relative to the largest entry."""
    assert actual.shape == expected.shape
    assert torch.isfinite(actual).all()
    largest = float((actual - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)
    assert largest < tolerance, f"differs by {largest:.2e} of the largest entry, allowed are {tolerance:.0e}"


def assert_equivariant(encoder: Any, crystal: Crystal, tolerance: float, improper: bool = False) -> None:
    """Features of a rotated (improper: also inverted) crystal are the features, rotated by e3nn's D matrices."""
    torch.manual_seed(3)
    rotation = o3.rand_matrix(dtype=torch.float64) * (-1 if improper else 1)
    turned = replace(crystal, lattice=crystal.lattice @ rotation.numpy().T)
    matrix = encoder.irreps_out.D_from_matrix(rotation.to(torch.get_default_dtype()))
    before, after = atom_features(encoder, crystal), atom_features(encoder, turned)
    for place in encoder.irreps_out.slices():  # each degree on its own: large scalars hide wrong vectors
        expected = before[:, place] @ matrix[place, place].T
        assert expected.abs().max() > 1e-3, "features of a degree are all zero: this crystal tests nothing"
        close(after[:, place], expected, tolerance)


def assert_permutation_equivariant(encoder: Any, crystal: Crystal, tolerance: float) -> None:
    """Features follow their atoms when these are listed in another order."""
    order = np.random.default_rng(0).permutation(len(crystal))
    shuffled = replace(crystal, frac_coords=crystal.frac_coords[order], numbers=crystal.numbers[order])
    close(atom_features(encoder, shuffled), atom_features(encoder, crystal)[torch.from_numpy(order)], tolerance)


def assert_cell_invariant(encoder: Any, crystal: Crystal, tolerance: float) -> None:
    """Features do not depend on which of the equivalent cells describes the crystal."""
    close(atom_features(encoder, other_cell(crystal)), atom_features(encoder, crystal), tolerance)


def assert_supercell_invariant(encoder: Any, crystal: Crystal, tolerance: float) -> None:
    """Every copy of an atom has its features."""
    expected = atom_features(encoder, crystal).repeat_interleave(4, dim=0)
    close(atom_features(encoder, supercell(crystal, (2, 1, 2))), expected, tolerance)


def assert_batch_invariant(encoder: Any, crystal: Crystal, tolerance: float) -> None:
    """Features do not depend on which crystals share the batch."""
    before, behind = random_crystal(3, seed=101), random_crystal(9, seed=102)
    together = atom_features(encoder, before, crystal, behind)[len(before) : -len(behind)]
    close(together, atom_features(encoder, crystal), tolerance)


def assert_noise_stable(encoder: Any, crystal: Crystal, tolerance: float, size: float = 1e-5) -> None:
    """Displacements far below any physical precision change features by little."""
    close(atom_features(encoder, moved(crystal, size)), atom_features(encoder, crystal), tolerance)
