"""The shared encoder: from a batch of crystals to features of every atom."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from datamodules.graph import NeighborRecipe
from datamodules.known import Known
from foundation.encoder.edge import EdgeConvolution, EdgeGeometry
from foundation.encoder.elements import NUM_ELEMENTS, element_descriptors, element_radii
from foundation.encoder.irreps import split_channels, to_e3nn
from foundation.encoder.node import NodeUpdate, Products
from foundation.encoder.radial import GaussianBasis, envelope


class Embedding(nn.Module):
    """An atom's first scalars: what is known of its element, and how much room it has.

    Of the element, a learned row of its own and a linear map of its descriptors. The row starts near zero, so
    that with few labels elements are told apart by what chemistry knows of them. The room is the distance to the
    k-th neighbour, in Angstrom and in units of the element's radius: how densely atoms are packed says much about
    stiffness, and sums over a number of neighbours that is the same everywhere hide it.

    Args:
        channels: Number of scalars C.
        num_room: Radial functions of each of the two distances.
    """

    descriptors: Tensor
    radii: Tensor

    def __init__(self, channels: int, num_room: int) -> None:
        super().__init__()
        self.register_buffer("descriptors", element_descriptors())
        self.register_buffer("radii", element_radii())
        self.own = nn.Embedding(NUM_ELEMENTS + 1, channels)
        nn.init.normal_(self.own.weight, std=0.02)
        self.shared = nn.Linear(self.descriptors.shape[1], channels)
        self.distances = GaussianBasis(num_room, start=2.0, stop=8.0)
        self.relative = GaussianBasis(num_room, start=1.0, stop=5.0)
        self.room = nn.Linear(2 * num_room, channels, bias=False)

    def forward(self, numbers: Tensor, kth_distance: Tensor) -> Tensor:
        """[N] atomic numbers, [N] distances to the k-th neighbour in Angstrom -> [N, C]."""
        packing = torch.cat([self.distances(kth_distance), self.relative(kth_distance / self.radii[numbers])], dim=1)
        channels: Tensor = self.own(numbers) + self.shared(self.descriptors[numbers]) + self.room(packing)
        return channels


class Block(nn.Module):
    """One round of messages: the two-body part ``edge``, then the many-body part ``node``."""

    def __init__(self, edge: EdgeConvolution, node: NodeUpdate) -> None:
        super().__init__()
        self.edge = edge
        self.node = node

    def forward(self, features: list[Tensor], edges: EdgeGeometry) -> list[Tensor]:
        """One [N, 2l+1, C_l] per degree ([N, C_0] for scalars) -> the same."""
        updated: list[Tensor] = self.node(features, self.edge(features, edges))
        return updated


class Readout(nn.Module):
    """The last scalars, widened and made nonlinear, beside the last features of higher degree."""

    def __init__(self, irreps: str, scalars: int) -> None:
        super().__init__()
        self.irreps_in = o3.Irreps(irreps)
        channels = split_channels(self.irreps_in)
        self.irreps_out = o3.Irreps([(scalars, (0, 1)), *self.irreps_in[1:]])
        self.widen = nn.Sequential(nn.LayerNorm(channels[0]), nn.Linear(channels[0], scalars), nn.SiLU())

    def forward(self, features: list[Tensor]) -> Tensor:
        """One [N, 2l+1, C_l] per degree ([N, C_0] for scalars) -> [N, irreps_out.dim] in e3nn's layout."""
        return to_e3nn([self.widen(features[0]), *features[1:]])


class EquivariantEncoder(nn.Module):
    """E(3)-equivariant encoder of crystals, shared by every head.

    Args:
        irreps: Node features, one term per degree 0, 1, 2, such as "64x0e+32x1o+16x2e".
        num_blocks: Rounds of message passing.
        readout_channels: Scalars per atom that the heads see.
        num_radial: Size of the radial basis.
        radial_cutoff: Angstrom of the last radial function.
        radial_hidden: Hidden channels of the radial networks.
        num_room: Functions of the distance to the k-th neighbour that the embedding takes in.
        num_neighbors: Nearest neighbours that every atom sees in full.
        shell_width: Angstrom beyond the last of these over which further neighbours fade out.
        max_cutoff: Angstrom beyond which no atom is seen.
        products: "plain", or "cuequivariance" for NVIDIA's kernels; the numbers and the weights are the same.
    """

    def __init__(
        self,
        irreps: str = "64x0e+32x1o+16x2e",
        num_blocks: int = 3,
        readout_channels: int = 128,
        num_radial: int = 10,
        radial_cutoff: float = 8.0,
        radial_hidden: int = 32,
        num_room: int = 16,
        num_neighbors: int = 12,
        shell_width: float = 0.5,
        max_cutoff: float = 10.0,
        products: Products = "plain",
    ) -> None:
        super().__init__()
        channels = split_channels(o3.Irreps(irreps))
        self.recipe = NeighborRecipe(num_neighbors, shell_width, max_cutoff)
        self.degrees = list(range(1, len(channels)))
        self.basis = GaussianBasis(num_radial, stop=radial_cutoff)
        self.embedding = Embedding(channels[0], num_room)
        self.blocks = nn.ModuleList(
            Block(
                EdgeConvolution(irreps, num_radial, radial_hidden, num_neighbors, first=index == 0),
                NodeUpdate(irreps, products),
            )
            for index in range(num_blocks)
        )
        self.readout = Readout(irreps, readout_channels)
        self.irreps_out = self.readout.irreps_out

    def stages(self) -> OrderedDict[str, nn.Module]:
        """The encoder's named parts in the order the data flows; together they hold every parameter."""
        parts: list[tuple[str, nn.Module]] = [("embedding", self.embedding)]
        for index, block in enumerate(self.blocks):
            parts += [(f"blocks.{index}.{name}", part) for name, part in block.named_children()]
        return OrderedDict([*parts, ("readout", self.readout)])

    def compile(self, *args: Any, **kwargs: Any) -> None:
        """Compile what calls of this module run where gradients are wanted; ``torch.compile``'s arguments.

        On a CPU each block by itself: blocks of the same shapes share what is compiled, which takes little more than
        half as long, and a step takes the same. On a GPU the whole, since there the start of every kernel counts.
        """
        if next(self.parameters()).is_cuda:
            super().compile(*args, **kwargs)
        else:
            for block in self.blocks:
                block.compile(*args, **kwargs)

    def forward(self, batch: Any, known: Known | None = None) -> Tensor:
        """Features of every atom.

        Args:
            batch: A batch of B crystals with N atoms and E edges (``datamodules.batching.CrystalBatch``).
            known: Features to go on from, as ``features_after`` gives them; None begins at the beginning.

        Returns:
            [N, irreps_out.dim] in e3nn's layout.
        """
        if known is not None and known.blocks > len(self.blocks):
            return known.features[0]
        edges = self._geometry(batch)
        start, features = (0, self._embed(batch)) if known is None else known
        for index in range(start, len(self.blocks)):
            features = self._block(index, features, edges)
        out: Tensor = self.readout(features)
        return out

    def features_after(self, batch: Any, blocks: int) -> Known:
        """Features of every atom after the embedding and some blocks.

        Args:
            batch: A batch.
            blocks: How many blocks; one more than there are includes the readout.
        """
        if blocks > len(self.blocks):
            return Known(blocks, [self.forward(batch)])
        edges = self._geometry(batch)
        features = self._embed(batch)
        for index in range(blocks):
            features = self._block(index, features, edges)
        return Known(blocks, features)

    def _block(self, index: int, features: list[Tensor], edges: EdgeGeometry) -> list[Tensor]:
        # A compiled block is compiled for training: without gradients it runs as it is, and is not compiled again.
        block = self.blocks[index]
        updated: list[Tensor] = block(features, edges) if torch.is_grad_enabled() else block.forward(features, edges)
        return updated

    def _embed(self, batch: Any) -> list[Tensor]:
        return [self.embedding(batch.z, batch.cutoff - self.recipe.shell_width)]

    def _geometry(self, batch: Any) -> EdgeGeometry:
        sender, receiver = batch.edge_index
        vector = batch.edge_vector  # [E, 3] from receiver to sender
        distance = vector.norm(dim=1)
        harmonics = o3.spherical_harmonics(self.degrees, vector, normalize=True, normalization="component")
        return EdgeGeometry(
            sender=sender,
            receiver=receiver,
            radial=self.basis(distance),
            envelope=envelope(distance, batch.cutoff[receiver], self.recipe.shell_width),
            harmonics=list(torch.split(harmonics, [2 * degree + 1 for degree in self.degrees], dim=1)),
        )
