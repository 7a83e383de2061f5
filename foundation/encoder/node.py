"""The many-body part of a block: products of what each atom has gathered, and its update."""

from __future__ import annotations

import torch
from e3nn import o3
from torch import Tensor, nn

from foundation.encoder.irreps import split_channels
from foundation.encoder.products import ChannelwiseProduct, bounded, inner, squared_norm


class NodeUpdate(nn.Module):
    """Update of the node features from gathered messages and their products.

    A gathered feature is a sum over neighbours, so its products see pairs and triples of neighbours: angles
    and dihedrals, as in the atomic cluster expansion, without any sum over triples.

    Args:
        irreps: Node features in and out, such as "64x0e+32x1o+16x2e".
    """

    def __init__(self, irreps: str) -> None:
        super().__init__()
        self.irreps_in = self.irreps_out = o3.Irreps(irreps)
        self.channels = split_channels(self.irreps_in)
        if len(self.channels) != 3:
            raise ValueError(f"irreps {irreps}: the encoder works with degrees 0, 1 and 2")
        c0, c1, c2 = self.channels
        self.vector_to_narrow = nn.Linear(c1, c2, bias=False)  # products run in the channels of degree 2
        self.product_112 = ChannelwiseProduct(1, 1, 2)
        self.product_121 = ChannelwiseProduct(1, 2, 1)
        self.product_222 = ChannelwiseProduct(2, 2, 2)
        invariants = 2 * c0 + c1 + 3 * c2
        self.norm = nn.LayerNorm(invariants)
        self.update_scalars = nn.Sequential(
            nn.Linear(invariants, 2 * c0), nn.SiLU(), nn.Linear(2 * c0, sum(self.channels))
        )
        self.update_vectors = nn.Linear(c1 + c2, c1, bias=False)
        self.update_tensors = nn.Linear(3 * c2, c2, bias=False)

    def forward(self, features: list[Tensor], gathered: list[Tensor]) -> list[Tensor]:
        """Features and gathered messages, one [N, 2l+1, C_l] per degree ([N, C_0] for scalars) -> features."""
        scalars, vectors, tensors = gathered[0], bounded(gathered[1]), bounded(gathered[2])
        narrow = self.vector_to_narrow(vectors)  # [N, 3, C_2]
        pairs = self.product_112(narrow, narrow)  # [N, 5, C_2]
        crossed = self.product_121(narrow, tensors)  # [N, 3, C_2]
        squares = self.product_222(tensors, tensors)  # [N, 5, C_2]
        invariants = torch.cat(
            [
                features[0],
                scalars,
                squared_norm(vectors),
                squared_norm(tensors),
                inner(pairs, tensors),
                inner(squares, tensors),
            ],
            dim=1,
        )
        change, gate_vectors, gate_tensors = self.update_scalars(self.norm(invariants)).split(self.channels, dim=1)
        new_vectors = self.update_vectors(torch.cat([vectors, crossed], dim=2)) * gate_vectors[:, None]
        new_tensors = self.update_tensors(torch.cat([tensors, pairs, squares], dim=2)) * gate_tensors[:, None]
        if len(features) == 1:  # after the embedding there is nothing of higher degree to add to
            return [features[0] + change, new_vectors, new_tensors]
        return [features[0] + change, features[1] + new_vectors, features[2] + new_tensors]
