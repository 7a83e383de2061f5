"""From the features of atoms, of degrees 0 to 2, to any irreps up to degree 4, of each atom or each crystal.

Degrees that the features lack come from products of them on atoms: 1o x 1o -> 1e, 1o x 2e -> 2o and 3o, 2e x 2e -> 3e
and 4e. On sites of high symmetry that is not enough: vectors and rank-2 features vanish on a cubic site, and so do all
their products, while a cubic crystal does have a rank-4 part of its elastic tensor. So the degrees 3o and 4e also
come from the directions of each atom's neighbours.
"""

from __future__ import annotations

import math
from itertools import combinations_with_replacement
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from heads.base import invariant_slice
from heads.pooling import MeanAndAttention, crystal_mean

FADE = 0.5  # Angstrom over which a neighbour fades out before the cutoff
CUTOFF = 8.0  # Angstrom of the last radial function
NUM_RADIAL = 10
FAR_CHANNELS = 4  # of the sums over neighbours of each degree
NUM_NEIGHBORS = 12.0  # by whose root sums over neighbours are divided

Kind = tuple[int, int]  # degree and parity
Features = dict[Kind, Tensor]  # each [N, 2l+1, C]


class NeighborHarmonics(nn.Module):
    """Sums over neighbours of the spherical harmonics of their direction, weighed by distance and both atoms.

    Args:
        scalars: Scalars per atom C_0.
        degrees: Degrees l of the harmonics.
        hidden: Hidden channels of the radial network.
    """

    centers: Tensor

    def __init__(self, scalars: int, degrees: list[int], hidden: int = 16) -> None:
        super().__init__()
        self.degrees = degrees
        self.register_buffer("centers", torch.linspace(0.5, CUTOFF, NUM_RADIAL), persistent=False)
        self.radial = nn.Linear(NUM_RADIAL, hidden)
        self.sender = nn.Linear(scalars, hidden, bias=False)
        self.receiver = nn.Linear(scalars, hidden, bias=False)
        self.out = nn.Linear(hidden, len(degrees) * FAR_CHANNELS)

    def forward(self, scalars: Tensor, batch: Any, weights: dict[Kind, Tensor]) -> Features:
        """What is made of the neighbours.

        Args:
            scalars: [N, C_0].
            batch: The batch.
            weights: One [N, M, FAR_CHANNELS] per degree, for M results of it.

        Returns:
            One [N, M, 2l+1] per degree.
        """
        sender, receiver = batch.edge_index
        distance = batch.edge_vector.norm(dim=1)  # [E]
        width = (CUTOFF - 0.5) / (NUM_RADIAL - 1)
        basis = torch.exp(-0.5 * ((distance[:, None] - self.centers) / width) ** 2)  # [E, R]
        hidden = self.radial(basis) + self.sender(scalars).index_select(0, sender)
        hidden = hidden + self.receiver(scalars).index_select(0, receiver)
        inside = ((batch.cutoff.index_select(0, receiver) - distance) / FADE).clamp(0.0, 1.0)
        channels = self.out(nn.functional.silu(hidden)) * (inside * inside * (3.0 - 2.0 * inside))[:, None]
        directions = o3.spherical_harmonics(self.degrees, batch.edge_vector, normalize=True, normalization="component")
        found: Features = {}
        harmonics = directions.split([2 * degree + 1 for degree in self.degrees], dim=1)
        for degree, harmonic, channel in zip(
            self.degrees, harmonics, channels.chunk(len(self.degrees), dim=1), strict=True
        ):
            kind = degree, (-1) ** degree
            # Channels are summed on the edge, so that what is gathered has none.
            weight = (weights[kind] / math.sqrt(NUM_NEIGHBORS)).index_select(0, receiver)  # [E, M, C]
            message = (weight * channel[:, None]).sum(dim=2)[:, :, None] * harmonic[:, None]  # [E, M, 2l+1]
            found[kind] = message.new_zeros(len(scalars), *message.shape[1:]).index_add(0, receiver, message)
        return found


class AtomProducts(nn.Module):
    """Products of pairs of the features of an atom, channel by channel.

    Args:
        channels: Degree l >= 1 -> channels C_l of the feature of that degree and natural parity.
        wanted: Degrees and parities to make.
        width: Channels of the products.
    """

    def __init__(self, channels: dict[int, int], wanted: set[Kind], width: int) -> None:
        super().__init__()
        self.pairs: dict[tuple[int, int], list[Kind]] = {}
        for first, second in combinations_with_replacement(channels, 2):
            degrees = range(abs(first - second), first + second + 1)
            kinds = [(degree, (-1) ** (first + second)) for degree in degrees]
            kinds = [kind for kind in kinds if kind in wanted]
            if kinds:
                self.pairs[first, second] = kinds
        # A pseudoscalar is a product of three vectors.
        self.triple = (0, -1) in wanted and 1 in channels
        lefts = {first for first, _ in self.pairs} | ({1} if self.triple else set())
        rights = {second for _, second in self.pairs} | ({1} if self.triple else set())
        self.left = nn.ModuleDict({str(d): nn.Linear(channels[d], width, bias=False) for d in sorted(lefts)})
        self.right = nn.ModuleDict({str(d): nn.Linear(channels[d], width, bias=False) for d in sorted(rights)})
        self.third = nn.Linear(channels[1], width, bias=False) if self.triple else None
        for first, second in self.pairs:
            for degree, parity in self.pairs[first, second]:
                table = o3.wigner_3j(first, second, degree, dtype=torch.float64).flatten(0, 1)
                table = (table * math.sqrt(2 * degree + 1)).to(torch.get_default_dtype())
                # [(2 l1 + 1) (2 l2 + 1), 2 l3 + 1]
                self.register_buffer(_table(first, second, (degree, parity)), table, persistent=False)

    def forward(self, features: Features, weights: dict[Kind, list[Tensor]]) -> dict[Kind, list[Tensor]]:
        """Weighed sums over the channels of each path.

        Args:
            features: One [N, 2l+1, C_l] per degree.
            weights: One [N, M, width] per path, by degree and parity, for M results of it.

        Returns:
            One [N, M, 2l+1] per path, by degree and parity.
        """
        left = {d: _bounded(linear(features[int(d), (-1) ** int(d)])) for d, linear in self.left.items()}
        right = {d: _bounded(linear(features[int(d), (-1) ** int(d)])) for d, linear in self.right.items()}
        found: dict[Kind, list[Tensor]] = {kind: [] for kind in weights}
        for (first, second), kinds in self.pairs.items():
            # Channels are summed before the components are combined: of all components of two features and all their
            # channels there are many, and each is used a few times only.
            weight = [weights[kind][len(found[kind])] for kind in kinds]
            weighed = torch.cat(weight, dim=1)[:, :, None] * left[str(first)][:, None]  # [N, sum M, 2 l1 + 1, width]
            pairs = torch.bmm(weighed.flatten(1, 2), right[str(second)].mT)  # [N, sum M (2 l1 + 1), 2 l2 + 1]
            pairs = pairs.view(len(pairs), -1, (2 * first + 1) * (2 * second + 1))
            for kind, part in zip(kinds, pairs.split([part.shape[1] for part in weight], dim=1), strict=True):
                found[kind].append(_rows_times(part, getattr(self, _table(first, second, kind))))
        if self.third is not None:
            crossed = torch.linalg.cross(left["1"], right["1"], dim=1)
            scalar = (crossed * self.third(features[1, -1])).sum(dim=1, keepdim=True)  # [N, 1, width]
            found[0, -1].append(weights[0, -1][0] @ scalar.mT)
        return found

    def count(self, kind: Kind) -> int:
        """How many paths make a degree and parity."""
        return sum(kind in kinds for kinds in self.pairs.values()) + (kind == (0, -1) and self.triple)


class IrrepsReadout(nn.Module):
    """Irreps of each crystal or each atom, linear in equivariant features with weights that depend on the scalars.

    Args:
        irreps_in: Irreps of the atom features: scalars, and at most degrees 1o and 2e.
        irreps_out: What is made, up to degree 4.
        per_atom: Whether each atom has its own; else the mean over the atoms is made, which is intensive.
        hidden: Channels of a hidden layer for the weights; 0 for linear ones.
        width: Channels of products.
        bias: Whether what is made of scalars has a bias; it would be lost where a mean is taken off.

    Raises:
        ValueError: If the features hold no scalars, or an irrep cannot be made of them.
    """

    def __init__(
        self,
        irreps_in: str,
        irreps_out: o3.Irreps,
        per_atom: bool,
        hidden: int = 0,
        width: int = 8,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.irreps_in, self.irreps_out = o3.Irreps(irreps_in), irreps_out
        self.per_atom = per_atom
        self.scalars = invariant_slice(self.irreps_in)
        self.places = {(ir.l, ir.p): (mul, ir.dim) for mul, ir in self.irreps_in}
        size = self.scalars.stop - self.scalars.start
        counts: dict[Kind, int] = {}
        for mul, ir in irreps_out:
            counts[ir.l, ir.p] = counts.get((ir.l, ir.p), 0) + mul
        self.num_scalars = counts.pop((0, 1), 0)
        self.wanted = counts
        channels = {d: mul for (d, p), (mul, _) in self.places.items() if d > 0 and p == (-1) ** d}
        far = [d for d, p in sorted(counts) if p == (-1) ** d and d >= 3]
        self.neighbors = NeighborHarmonics(size, far) if far else None
        self.products = AtomProducts(channels, set(counts), width)
        # Channels of each source of each degree: of every product, of the feature itself, of the neighbours.
        self.sources: dict[Kind, list[int]] = {}
        for kind in counts:
            natural = kind[1] == (-1) ** kind[0]
            own = [channels[kind[0]]] if natural and kind[0] in channels else []
            near = [FAR_CHANNELS] if natural and kind[0] in far else []
            self.sources[kind] = [*[width] * self.products.count(kind), *own, *near]
            if not self.sources[kind]:
                raise ValueError(
                    f"irreps {irreps_in}: nothing of degree {kind[0]}, parity {kind[1]} can be made of them"
                )
        sizes = [count * sum(self.sources[kind]) for kind, count in counts.items()]
        self.weights = _network(size, hidden, sum(sizes)) if sizes else None
        self.pool = None if per_atom or not self.num_scalars else MeanAndAttention(size)
        entering = size if per_atom else 2 * size
        self.invariants = _network(entering, hidden, self.num_scalars, bias) if self.num_scalars else None

    @property
    def needs_edges(self) -> bool:
        """Whether neighbours are looked at."""
        return self.neighbors is not None

    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """[N, irreps_in.dim] -> [B, irreps_out.dim], or [N, irreps_out.dim] of atoms."""
        # Split at once: the gradient of slices, one by one, would be as many arrays of zeros.
        given = dict(
            zip(self.places, features.split([mul * dim for mul, dim in self.places.values()], dim=1), strict=True)
        )
        scalars = given[0, 1]
        made: dict[Kind, Tensor] = {}
        if self.invariants is not None:
            entering = scalars if self.pool is None else self.pool(scalars, batch)
            made[0, 1] = self.invariants(entering)
        if self.weights is not None:
            made |= self._equivariant(given, batch)
        parts, taken = [], dict.fromkeys(made, 0)
        for mul, ir in self.irreps_out:
            start = taken[ir.l, ir.p]
            taken[ir.l, ir.p] = start + mul * ir.dim
            parts.append(made[ir.l, ir.p][:, start : start + mul * ir.dim])
        return torch.cat(parts, dim=1)

    def _equivariant(self, given: Features, batch: Any) -> Features:
        """One [B or N, multiplicity * (2l+1)] per degree and parity beside the scalars."""
        scalars = given[0, 1]
        own = {
            kind: given[kind].view(-1, mul, dim).transpose(1, 2)
            for kind, (mul, dim) in self.places.items()
            if kind != (0, 1)
        }
        weights = self._weights_of_sources(scalars)
        found = self.products(own, weights)
        for kind in self.wanted:
            if kind in own:
                found[kind].append(torch.bmm(weights[kind][len(found[kind])], own[kind].mT))
        if self.neighbors is not None:
            near = {(d, (-1) ** d): weights[d, (-1) ** d][-1] for d in self.neighbors.degrees}
            for kind, gathered in self.neighbors(scalars, batch, near).items():
                found[kind].append(gathered)
        values = {kind: sum(parts[1:], parts[0]).flatten(1) for kind, parts in found.items()}
        return values if self.per_atom else {kind: crystal_mean(value, batch) for kind, value in values.items()}

    def _weights_of_sources(self, scalars: Tensor) -> dict[Kind, list[Tensor]]:
        """[N, C_0] -> one [N, multiplicity, C] per source of each degree and parity."""
        assert self.weights is not None
        sizes = [count * sum(self.sources[kind]) for kind, count in self.wanted.items()]
        weights = {}
        for (kind, count), weight in zip(self.wanted.items(), self.weights(scalars).split(sizes, dim=1), strict=True):
            total = sum(self.sources[kind])
            weight = weight.view(-1, count, total) / math.sqrt(total)
            weights[kind] = list(weight.split(self.sources[kind], dim=2))
        return weights


def _table(first: int, second: int, kind: Kind) -> str:
    return f"table_{first}_{second}_{kind[0]}"


def _rows_times(rows: Tensor, table: Tensor) -> Tensor:
    """[N, M, K] times [K, D] as one product of matrices -> [N, M, D]."""
    return (rows.reshape(-1, len(table)) @ table).view(*rows.shape[:2], -1)


def _network(size: int, hidden: int, out: int, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(size, hidden), nn.SiLU()] if hidden else []
    return nn.Sequential(*layers, nn.Linear(hidden or size, out, bias=bias))


def _bounded(feature: Tensor) -> Tensor:
    """Scale a feature [N, 2l+1, C] down where it is large, so that products cannot run away; small ones stay."""
    return feature * torch.rsqrt(1.0 + feature.square().mean(dim=(1, 2), keepdim=True))
