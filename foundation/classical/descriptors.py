"""What a crystal is made of and how it is packed, as numbers that do not depend on the cell chosen to describe it.

Composition: how the properties of the elements spread over the atoms, after Ward et al. (2016), npj Comput. Mater.
2, 16028. Structure: density, bonds and coordination from the neighbours of every atom, and how much an atom differs
from its neighbours, after Ward et al. (2017), Phys. Rev. B 96, 024104. A bond's weight is that of the effective
coordination number of Hoppe (1979), Z. Kristallogr. 150, 23, which falls smoothly: no neighbour is in or out.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd
from tqdm import tqdm

from datamodules.batching import CrystalBatch, GraphArrays
from datamodules.datamodule import CrystalDataModule
from datamodules.graph import NeighborRecipe
from foundation.encoder.elements import NUM_ELEMENTS, element_properties

Values = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

CHUNK = 1000  # crystals whose edges are held at once
DALTON = 1.66053906660  # g/cm^3 of one atomic mass unit in a cubic Angstrom
# Groups one by one are for a model that is linear in its input; a tree cuts the group's number.
_PROPERTIES = {name: values for name, values in element_properties().items() if not name.startswith("group ")}
_NAMES = list(_PROPERTIES)
_TABLE = np.vstack([np.zeros(len(_NAMES)), np.stack(list(_PROPERTIES.values()), axis=1)])  # row z for number z
_RADII = _TABLE[:, _NAMES.index("atomic radius")]
_DIFFERENCES = ("electronegativity", "log mass", "atomic radius", "Mendeleev number")


def describe(data: CrystalDataModule, rows: npt.ArrayLike) -> pd.DataFrame:
    """Descriptors of crystals of a store.

    Args:
        data: Data whose properties are chosen, which fixes the neighbours of each atom.
        rows: [K] rows of its store.

    Returns:
        [K, D] float64, a named column per descriptor, indexed by row.
    """
    return describe_graphs(data.graphs, np.asarray(rows, dtype=np.int64), data.recipe)


def describe_graphs(graphs: GraphArrays, rows: Ints, recipe: NeighborRecipe) -> pd.DataFrame:
    """[K] rows of graphs that were made by this recipe -> the same."""
    starts = range(0, max(len(rows), 1), CHUNK)
    chunks = tqdm(starts, desc="descriptors", unit=f" x {CHUNK} crystals", disable=None, delay=2)
    parts = [describe_batch(graphs.gather(rows[start : start + CHUNK]), recipe) for start in chunks]
    return pd.concat(parts).set_index(pd.Index(rows, name="row"))


def element_fractions(numbers: npt.NDArray[np.integer], ptr: Ints) -> Values:
    """Share of every element in M crystals.

    Args:
        numbers: [N] atomic numbers, crystal after crystal.
        ptr: [M + 1] first atom of each crystal.

    Returns:
        [M, NUM_ELEMENTS + 1], column z for atomic number z.
    """
    counts = np.diff(ptr)
    cells = np.repeat(np.arange(len(counts)), counts) * (NUM_ELEMENTS + 1) + numbers
    table = np.bincount(cells, minlength=len(counts) * (NUM_ELEMENTS + 1)).reshape(len(counts), NUM_ELEMENTS + 1)
    return np.asarray(table / np.maximum(counts, 1)[:, None], dtype=np.float64)


def describe_batch(batch: CrystalBatch, recipe: NeighborRecipe) -> pd.DataFrame:
    """The same of the crystals of a batch on the CPU, its edges made by this recipe: [B, D]."""
    numbers, counts, volume = batch.z.numpy(), batch.num_atoms.numpy(), batch.volume.numpy()
    ptr = np.concatenate([[0], np.cumsum(counts)])
    fractions = element_fractions(numbers, ptr)
    atoms = dict(zip(_NAMES, _TABLE[numbers].T, strict=True))
    masses = np.exp(atoms["log mass"])
    bonds, orientation = _bonds(batch, recipe)
    columns = {
        "elements": (fractions > 0).sum(axis=1),
        "fractions, 2-norm": np.linalg.norm(fractions, ord=2, axis=1),
        "fractions, 3-norm": np.linalg.norm(fractions, ord=3, axis=1),
        "volume per atom (Angstrom^3)": volume / counts,
        "density (g/cm^3)": DALTON * np.add.reduceat(masses, ptr[:-1]) / volume,
        "packing": 4 / 3 * np.pi * np.add.reduceat(_RADII[numbers] ** 3, ptr[:-1]) / volume,
        **_spread({name: values for name, values in atoms.items() if not name.endswith(" block")}, ptr),
        **{name: np.add.reduceat(values, ptr[:-1]) / counts for name, values in atoms.items() if "block" in name},
        **_spread(bonds, ptr),
        **_anisotropy(orientation, ptr),
    }
    return pd.DataFrame(columns, dtype=np.float64)


def _spread(atoms: dict[str, Values], ptr: Ints) -> dict[str, Values]:
    """Statistics over the atoms of each crystal, of quantities [N] each."""
    values = np.stack(list(atoms.values()), axis=1)  # [N, P]
    starts, counts = ptr[:-1], np.diff(ptr)
    mean = np.add.reduceat(values, starts) / counts[:, None]
    away = np.abs(values - np.repeat(mean, counts, axis=0))
    kinds = {
        "mean": mean,
        "deviation": np.add.reduceat(away, starts) / counts[:, None],
        "min": np.minimum.reduceat(values, starts),
        "max": np.maximum.reduceat(values, starts),
    }
    return {f"{name}, {kind}": table[:, p] for p, name in enumerate(atoms) for kind, table in kinds.items()}


def _bonds(batch: CrystalBatch, recipe: NeighborRecipe) -> tuple[dict[str, Values], Values]:
    """What every atom's neighbours say of it, and [N, 3, 3] in which directions they stand.

    An atom without neighbours has its next one at the distance up to which they were looked for.
    """
    size = len(batch.z)
    numbers, (sender, receiver) = batch.z.numpy(), batch.edge_index.numpy()
    vector = batch.edge_vector.double().numpy()
    length = np.linalg.norm(vector, axis=1)  # [E]
    nearest = np.full(size, recipe.max_cutoff)
    np.minimum.at(nearest, receiver, length)
    weight = np.exp(1 - (length / nearest[receiver]) ** 6)
    coordination = np.asarray(np.bincount(receiver, weight, size), dtype=np.float64)

    def around(values: Values) -> Values:
        """[E] -> [N] mean over the bonds of each atom, by weight."""
        total = np.bincount(receiver, weight * values, size)
        return np.asarray(total / np.maximum(coordination, 1e-9), dtype=np.float64)

    ends = _RADII[numbers[sender]] + _RADII[numbers[receiver]]
    direction = vector / length[:, None]
    orientation = [around(direction[:, i] * direction[:, j]) for i in range(3) for j in range(3)]
    one_sided = np.stack([around(direction[:, i]) for i in range(3)], axis=1)
    table = {name: _TABLE[:, _NAMES.index(name)] for name in _DIFFERENCES}
    atoms: dict[str, Values] = {
        "nearest neighbour (Angstrom)": nearest,
        "k-th neighbour (Angstrom)": batch.cutoff.double().numpy() - recipe.shell_width,
        "bond length (Angstrom)": around(length),
        "bond length / radii": around(length / ends),
        "coordination": coordination,
        "one-sidedness": np.sqrt((one_sided**2).sum(axis=1)),
        **{
            f"difference in {name}": around(abs(of[numbers[sender]] - of[numbers[receiver]]))
            for name, of in table.items()
        },
    }
    return atoms, np.stack(orientation, axis=1).reshape(size, 3, 3)


def _anisotropy(orientation: Values, ptr: Ints) -> dict[str, Values]:
    """How unequally the bonds of a crystal point along its three axes: thirds if equally, a zero if in layers."""
    mean = np.add.reduceat(orientation, ptr[:-1]) / np.diff(ptr)[:, None, None]
    shares = np.asarray(np.linalg.eigvalsh(mean), dtype=np.float64)  # ascending
    return {f"bonds along axis {axis + 1}": shares[:, axis] for axis in range(3)}
