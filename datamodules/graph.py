"""From a crystal to its graph: the soft-shell neighbour recipe.

Every atom i sees the neighbours j within its own cutoff

    cutoff_i = min(d_k(i) + shell_width, max_cutoff)

where d_k(i) is the distance to its k-th nearest neighbour, periodic images counted. The encoder weights each
edge with an envelope that falls from 1 at ``cutoff_i - shell_width`` to 0 at ``cutoff_i``. The recipe uses
distances only, so it is invariant to rotation, permutation and the choice of cell; d_k is a continuous
function of the positions and an edge that enters or leaves the graph does so with weight zero, so a small
displacement changes predictions by a small amount even where distances are nearly degenerate.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt
from pymatgen.optimization.neighbors import find_points_in_spheres

from datamodules.crystals import Crystal

# Two atoms closer than this are the same point, seen twice.
SAME_POINT = 1e-8
_PERIODIC = np.ones(3, dtype=np.int64)


@dataclass(frozen=True)
class NeighborRecipe:
    """Which atoms see each other.

    Attributes:
        num_neighbors: k, the number of nearest neighbours that are inside every shell.
        shell_width: Angstrom over which the envelope falls to zero beyond the k-th neighbour.
        max_cutoff: Angstrom beyond which no atom is seen; an atom alone within it has no edges.
    """

    num_neighbors: int = 12
    shell_width: float = 0.5
    max_cutoff: float = 10.0

    @property
    def key(self) -> str:
        """Hash of the recipe."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class NeighborList:
    """Edges of one crystal of N atoms, sorted by receiver.

    Attributes:
        sender: [E] int64 index of the neighbour j.
        receiver: [E] int64 index of the atom i that sees it.
        shift: [E, 3] int64 lattice translations of the neighbour's image.
        cutoff: [N] float64 per-atom cutoff in Angstrom.
    """

    sender: npt.NDArray[np.int64]
    receiver: npt.NDArray[np.int64]
    shift: npt.NDArray[np.int64]
    cutoff: npt.NDArray[np.float64]


def fixed_cutoff_edges(
    crystal: Crystal, cutoff: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """All pairs within a fixed cutoff: receiver [E], sender [E], shift [E, 3], distance [E] in Angstrom."""
    lattice = np.ascontiguousarray(crystal.lattice, dtype=np.float64)
    # Wrapped into the cell so that shifts stay small however far the stored coordinates lie outside it.
    wrap = np.floor(crystal.frac_coords)
    positions = np.ascontiguousarray((crystal.frac_coords - wrap) @ lattice)
    receiver, sender, image, distance = find_points_in_spheres(
        positions, positions, r=float(cutoff), pbc=_PERIODIC, lattice=lattice, tol=SAME_POINT
    )
    keep = distance > SAME_POINT
    receiver, sender, distance = receiver[keep], sender[keep], distance[keep]
    offset = wrap.astype(np.int64)
    shift: npt.NDArray[np.int64] = image[keep].astype(np.int64) + offset[receiver] - offset[sender]
    return receiver, sender, shift, distance


def neighbor_list(crystal: Crystal, recipe: NeighborRecipe) -> NeighborList:
    """Edges of a crystal by the soft-shell recipe."""
    size = len(crystal)
    density = size / max(crystal.volume, 1e-12)
    # A sphere that holds 2.2 k atoms at the mean density reaches beyond the k-th neighbour in most crystals.
    radius = (3 * 2.2 * recipe.num_neighbors / (4 * np.pi * density)) ** (1 / 3) + 0.2
    while True:
        radius = min(radius, recipe.max_cutoff)
        receiver, sender, shift, distance = fixed_cutoff_edges(crystal, radius)
        kth = _kth_distance(receiver, distance, size, recipe.num_neighbors)
        cutoff = np.minimum(kth + recipe.shell_width, recipe.max_cutoff)
        if radius >= cutoff.max():
            break
        radius = float(kth.max()) + recipe.shell_width if np.isfinite(kth).all() else radius * 1.35
    keep = np.flatnonzero(distance < cutoff[receiver])
    keep = keep[np.argsort(receiver[keep], kind="stable")]
    return NeighborList(sender[keep], receiver[keep], shift[keep], cutoff)


def _kth_distance(
    receiver: npt.NDArray[np.int64], distance: npt.NDArray[np.float64], size: int, k: int
) -> npt.NDArray[np.float64]:
    """[N] distance to the k-th nearest neighbour of every atom, infinite where there are fewer."""
    order = np.argsort(receiver, kind="stable")
    receiver, distance = receiver[order], distance[order]
    counts = np.bincount(receiver, minlength=size)
    widest = int(counts.max(initial=0))
    if widest < k:
        return np.full(size, np.inf)
    table = np.full((size, widest), np.inf)
    table[receiver, np.arange(len(receiver)) - np.repeat(np.cumsum(counts) - counts, counts)] = distance
    kth: npt.NDArray[np.float64] = np.partition(table, k - 1, axis=1)[:, k - 1]
    return kth
