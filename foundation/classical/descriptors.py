"""What a crystal is made of and how it is packed, as numbers that do not depend on the cell chosen to describe it.

Composition: how the properties of the elements spread over the atoms, after Ward et al. (2016), npj Comput. Mater.
2, 16028. Structure: density, bonds and coordination from the neighbours of every atom, and how much an atom differs
from its neighbours, after Ward et al. (2017), Phys. Rev. B 96, 024104. A bond's weight is that of the effective
coordination number of Hoppe (1979), Z. Kristallogr. 150, 23, which falls smoothly: no neighbour is in or out.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.batching import GraphArrays
from datamodules.datamodule import CrystalDataModule
from datamodules.graph import NeighborRecipe
from foundation.encoder.elements import element_properties
from heads.pooling import composition, crystal_mean, crystal_sum

Ints = npt.NDArray[np.int64]

CHUNK = 1000  # crystals whose edges are held at once
DALTON = 1.66053906660  # g/cm^3 of one atomic mass unit in a cubic Angstrom
# Groups one by one are for a model that is linear in its input; a tree cuts the group's number.
_KNOWN = {name: values for name, values in element_properties().items() if not name.startswith("group ")}
_BLOCKS = [name for name in _KNOWN if name.endswith(" block")]  # of which an atom has one: their mean says all
_NUMBERS = [name for name in _KNOWN if name not in _BLOCKS]
# Row z for number z; the columns of blocks are the last.
_TABLE = torch.tensor(np.stack([np.append(0.0, _KNOWN[name]) for name in (*_NUMBERS, *_BLOCKS)], axis=1))
_MASS, _RADIUS = _NUMBERS.index("log mass"), _NUMBERS.index("atomic radius")
_DIFFERENCES = ("electronegativity", "log mass", "atomic radius", "Mendeleev number")
_DIFFERING = [_NUMBERS.index(name) for name in _DIFFERENCES]
_STATISTICS, _EXTREMES = ("mean", "deviation", "min", "max"), ("amin", "amax")
_OF_BONDS = [
    "nearest neighbour (Angstrom)",
    "k-th neighbour (Angstrom)",
    "bond length (Angstrom)",
    "bond length / radii",
    "coordination",
    "one-sidedness",
    *(f"difference in {name}" for name in _DIFFERENCES),
]
NAMES = [
    "elements",
    "fractions, 2-norm",
    "fractions, 3-norm",
    "volume per atom (Angstrom^3)",
    "density (g/cm^3)",
    "packing",
    *(f"{name}, {kind}" for name in _NUMBERS for kind in _STATISTICS),
    *_BLOCKS,
    *(f"{name}, {kind}" for name in _OF_BONDS for kind in _STATISTICS),
    *(f"bonds along axis {axis}" for axis in (1, 2, 3)),
]


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
    return pd.DataFrame(torch.cat(parts).numpy(), pd.Index(rows, name="row"), NAMES)


def describe_batch(batch: Any, recipe: NeighborRecipe) -> Tensor:
    """Descriptors of the crystals of a batch, on its device.

    Args:
        batch: B crystals with their edges, which were made by this recipe: z, batch, num_atoms, volume, edge_index,
            edge_vector and cutoff of a ``CrystalBatch``.
        recipe: The neighbours of each atom.

    Returns:
        [B, D] in double precision; columns are called ``NAMES``.
    """
    counts, volume = batch.num_atoms.double(), batch.volume.double()
    elements = _TABLE.to(batch.z.device).index_select(0, batch.z)  # [N, P]
    fractions = composition(batch)
    bonds, orientation = _bonds(batch, recipe, elements)
    whole = [
        (fractions > 0).sum(dim=1).double(),
        torch.linalg.vector_norm(fractions, ord=2, dim=1),
        torch.linalg.vector_norm(fractions, ord=3, dim=1),
        volume / counts,
        DALTON * crystal_sum(elements[:, _MASS].exp(), batch) / volume,
        4 / 3 * math.pi * crystal_sum(elements[:, _RADIUS] ** 3, batch) / volume,
    ]
    # How unequally the bonds point along the three axes: thirds if equally, a zero if in layers.
    axes = torch.linalg.eigvalsh(crystal_mean(orientation, batch))  # [B, 3] ascending
    spread, blocks = elements[:, : -len(_BLOCKS)], elements[:, -len(_BLOCKS) :]
    parts = [_spread(spread, batch), crystal_mean(blocks, batch), _spread(bonds, batch), axes]
    return torch.cat([torch.stack(whole, dim=1), *parts], dim=1)


def _spread(values: Tensor, batch: Any) -> Tensor:
    """[N, P] of atoms -> [B, 4 P] statistics over the atoms of each crystal, those of ``_STATISTICS`` side by side."""
    mean = crystal_mean(values, batch)
    deviation = crystal_mean((values - mean.index_select(0, batch.batch)).abs(), batch)
    place = batch.batch[:, None].expand(values.shape)
    least, most = (torch.zeros_like(mean).scatter_reduce(0, place, values, by, include_self=False) for by in _EXTREMES)
    return torch.stack([mean, deviation, least, most], dim=2).flatten(1)


def _bonds(batch: Any, recipe: NeighborRecipe, elements: Tensor) -> tuple[Tensor, Tensor]:
    """[N, ...] what every atom's neighbours say of it, and [N, 3, 3] in which directions they stand.

    An atom without neighbours has its next one at the distance up to which they were looked for.
    """
    sender, receiver = batch.edge_index
    vector = batch.edge_vector.double()
    length = vector.norm(dim=1)  # [E]
    nearest = torch.full_like(elements[:, 0], recipe.max_cutoff).scatter_reduce(0, receiver, length, "amin")
    weight = torch.exp(1 - (length / nearest.index_select(0, receiver)) ** 6)
    coordination = torch.zeros_like(nearest).index_add(0, receiver, weight)

    told = elements[:, _DIFFERING]
    sent, received = told.index_select(0, sender), told.index_select(0, receiver)  # [E, 4]
    relative = length / (sent + received)[:, _DIFFERENCES.index("atomic radius")]
    direction = vector / length[:, None]
    pairs = (direction[:, :, None] * direction[:, None, :]).flatten(1)  # [E, 9]
    differences = (sent - received).abs()
    of_edges = torch.cat([length[:, None], relative[:, None], differences, direction, pairs], dim=1)
    total = of_edges.new_zeros(len(nearest), of_edges.shape[1]).index_add(0, receiver, weight[:, None] * of_edges)
    around = total / coordination.clamp(min=1e-9)[:, None]
    lengths, differences, one_sided, orientation = around.split([2, len(_DIFFERENCES), 3, 9], dim=1)
    kth = batch.cutoff.double() - recipe.shell_width
    first, then = torch.stack([nearest, kth], dim=1), torch.stack([coordination, one_sided.norm(dim=1)], dim=1)
    return torch.cat([first, lengths, then, differences], dim=1), orientation.unflatten(1, (3, 3))
