"""The many-body part of a block: products of what each atom has gathered, and its update."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from e3nn import o3
from torch import Tensor, nn

from foundation.encoder.cuequivariance import CuEquivarianceProduct
from foundation.encoder.irreps import split_channels
from foundation.encoder.products import ChannelwiseProduct, bounded, inner, squared_norm

Products = Literal["plain", "cuequivariance"]


class NodeUpdate(nn.Module):
    """Update of the node features from gathered messages and their products.

    A gathered feature is a sum over neighbours, so its products see pairs and triples of neighbours: angles
    and dihedrals, as in the atomic cluster expansion, without any sum over triples.

    Args:
        irreps: Node features in and out, such as "64x0e+32x1o+16x2e".
        products: What computes the products; the numbers and the weights are the same.
    """

    def __init__(self, irreps: str, products: Products = "plain") -> None:
        super().__init__()
        self.irreps_in = self.irreps_out = o3.Irreps(irreps)
        self.channels = split_channels(self.irreps_in)
        if len(self.channels) != 3:
            raise ValueError(f"irreps {irreps}: the encoder works with degrees 0, 1 and 2")
        c0, c1, c2 = self.channels
        self.vector_to_narrow = nn.Linear(c1, c2, bias=False)  # products run in the channels of degree 2
        self.product_112 = _product(1, 1, 2, c2, products)
        self.product_121 = _product(1, 2, 1, c2, products)
        self.product_222 = _product(2, 2, 2, c2, products)
        invariants = 2 * c0 + c1 + 3 * c2
        self.norm = nn.LayerNorm(invariants)
        self.update_scalars = nn.Sequential(
            nn.Linear(invariants, 2 * c0), nn.SiLU(), nn.Linear(2 * c0, sum(self.channels))
        )
        self.update_vectors = nn.Linear(c1 + c2, c1, bias=False)
        self.update_tensors = nn.Linear(3 * c2, c2, bias=False)

    def forward(self, features: list[Tensor], gathered: list[Tensor]) -> list[Tensor]:
        """Features and gathered messages, one [N, 2l+1, C_l] per degree ([N, C_0] for scalars) -> features."""
        # In the precision of the residual features, which stays single under bf16: norms and sums are taken there.
        dtype = features[0].dtype
        scalars, vectors, tensors = gathered[0], bounded(gathered[1].to(dtype)), bounded(gathered[2].to(dtype))
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
            return [features[0] + change, new_vectors.to(dtype), new_tensors.to(dtype)]
        return [features[0] + change, features[1] + new_vectors, features[2] + new_tensors]


def _product(l1: int, l2: int, l3: int, channels: int, products: Products) -> Callable[[Tensor, Tensor], Tensor]:
    if products == "cuequivariance":
        return CuEquivarianceProduct(l1, l2, l3, channels)
    return ChannelwiseProduct(l1, l2, l3)
