"""The two-body part of a block: messages from neighbours, gathered at each atom."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from e3nn import o3
from torch import Tensor, nn

from foundation.encoder.irreps import split_channels

# A message has some 200 numbers an edge, so that this many stay in the own cache of a core; a GPU has many cores.
EDGES_AT_A_TIME = {"cpu": 1_024, "cuda": 16_384}

# Shapes: N atoms, E edges, C_l channels of degree l, R radial functions, H hidden channels.


class EdgeGeometry(NamedTuple):
    """What the encoder knows of each edge.

    Attributes:
        sender: [E] atom j that the message comes from.
        receiver: [E] atom i that it goes to.
        radial: [E, R] radial basis of the distance.
        envelope: [E] weight that falls to zero at the receiver's cutoff.
        harmonics: One [E, 2l+1] spherical harmonic of the direction j - i per degree l, l >= 1.
    """

    sender: Tensor
    receiver: Tensor
    radial: Tensor
    envelope: Tensor
    harmonics: list[Tensor]

    def parts(self) -> list[EdgeGeometry]:
        """The edges, a few at a time where no gradient needs them all: the cost of one then does not grow with them."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return [self]
        count, kind = len(self.sender), self.sender.device.type
        most = EDGES_AT_A_TIME[kind] * (torch.get_num_threads() if kind == "cpu" else 1)
        if count <= most:
            return [self]
        places = [slice(start, start + most) for start in range(0, count, most)]
        return [
            EdgeGeometry(
                sender=self.sender[place],
                receiver=self.receiver[place],
                radial=self.radial[place],
                envelope=self.envelope[place],
                harmonics=[harmonic[place] for harmonic in self.harmonics],
            )
            for place in places
        ]


class EdgeConvolution(nn.Module):
    """Messages along the cheap paths only: (0 x l -> l), (l x 0 -> l) and (l x l -> 0).

    The weights of all paths are functions of the distance and of the two atoms' scalars. Products of higher
    order are left to the node update, where there are an order of magnitude fewer rows.

    Args:
        irreps: Node features in and out, such as "64x0e+32x1o+16x2e".
        num_radial: Size R of the radial basis.
        radial_hidden: Hidden channels H of the radial network.
        num_neighbors: Typical number of edges per atom, by whose root the sums are divided.
        first: Whether the node features hold scalars only, as after the embedding.
    """

    def __init__(self, irreps: str, num_radial: int, radial_hidden: int, num_neighbors: float, first: bool) -> None:
        super().__init__()
        self.irreps_in = self.irreps_out = o3.Irreps(irreps)
        self.channels = split_channels(self.irreps_in)
        self.first = first
        scalars, higher = self.channels[0], self.channels[1:]
        self.scale = 1.0 / math.sqrt(num_neighbors)

        self.norm = nn.LayerNorm(scalars)
        self.radial_in = nn.Linear(num_radial, radial_hidden)
        self.sender_in = nn.Linear(scalars, radial_hidden, bias=False)
        self.receiver_in = nn.Linear(scalars, radial_hidden, bias=False)
        # Scalars sent: one set kept scalar, and one set per degree to be multiplied with its harmonic.
        self.send_scalars = nn.Linear(scalars, sum(self.channels), bias=False)
        # Higher degrees sent: one set contracted with the harmonic, one set passed on as it is.
        self.send_higher = nn.ModuleList() if first else nn.ModuleList(nn.Linear(c, 2 * c, bias=False) for c in higher)
        self.paths = [scalars, *higher] if first else [scalars, *higher, *higher, *higher]
        self.radial_out = nn.Linear(radial_hidden, sum(self.paths))
        self.mix_scalars = nn.Linear(scalars if first else sum(self.channels), scalars)
        self.mix_higher = nn.ModuleList(nn.Linear(c, c, bias=False) for c in higher)

    def forward(self, features: list[Tensor], edges: EdgeGeometry) -> list[Tensor]:
        """Node features, one [N, 2l+1, C_l] per degree ([N, C_0] for scalars) -> gathered messages, alike."""
        scalars = self.norm(features[0])  # [N, C_0]
        # Rows are taken by index_select: its gradient is a plain sum, that of indexing is several times slower.
        hidden_sender, hidden_receiver = self.sender_in(scalars), self.receiver_in(scalars)  # each [N, H]
        sent = [self.send_scalars(scalars), *(f(part) for f, part in zip(self.send_higher, features[1:], strict=False))]
        # A sum per degree is contiguous, as views of a joint one would not be: torch multiplies other layouts in
        # another way once a weight is frozen, and the last bits of predictions would then depend on what trains.
        gathered: list[Tensor] = []
        for part in edges.parts():
            hidden = self.radial_in(part.radial)  # [E, H]
            hidden = hidden + hidden_sender.index_select(0, part.sender)
            hidden = hidden + hidden_receiver.index_select(0, part.receiver)
            messages = self._messages(nn.functional.silu(hidden), sent, part)
            gathered = gathered or [_empty_sum(message, len(scalars)) for message in messages]
            for total, message in zip(gathered, messages, strict=True):
                total.index_add_(0, part.receiver, message.to(total.dtype))
        mixes = [self.mix_scalars, *self.mix_higher]
        return [mix(total * self.scale) for mix, total in zip(mixes, gathered, strict=True)]

    def _messages(self, hidden: Tensor, sent: list[Tensor], edges: EdgeGeometry) -> list[Tensor]:
        """[E, H] and what atoms send -> one [E, 2l+1, C_l] per degree, [E, C] of all that is scalar."""
        top = len(self.channels) - 1
        path = self._path_weights(hidden, edges.envelope).split(self.paths, dim=1)  # each [E, C_l]
        scalars = sent[0].index_select(0, edges.sender).split(self.channels, dim=1)  # each [E, C_l]
        to_scalars = [path[0] * scalars[0]]
        to_higher = [
            (path[degree] * scalars[degree])[:, None] * harmonic[:, :, None]  # [E, 2l+1, C_l]
            for degree, harmonic in enumerate(edges.harmonics, start=1)
        ]
        for index, higher in enumerate(sent[1:]):
            contracted, passed = higher.index_select(0, edges.sender).chunk(2, dim=2)  # each [E, 2l+1, C_l]
            harmonic = edges.harmonics[index][:, :, None]
            to_scalars.append(path[1 + top + index] * (contracted * harmonic).sum(dim=1))
            to_higher[index] = torch.addcmul(to_higher[index], path[1 + 2 * top + index][:, None], passed)
        return [torch.cat(to_scalars, dim=1), *to_higher]

    def _path_weights(self, hidden: Tensor, envelope: Tensor) -> Tensor:
        """[E, H], [E] -> [E, sum C_l] ``radial_out(hidden) * envelope``, with the envelope on the narrow side."""
        faded = torch.cat([hidden * envelope[:, None], envelope[:, None]], dim=1)  # [E, H + 1]
        return nn.functional.linear(faded, torch.cat([self.radial_out.weight, self.radial_out.bias[:, None]], dim=1))


def _empty_sum(message: Tensor, rows: int) -> Tensor:
    """[E, ...] -> [N, ...] zeros, in single precision at least: a sum of many rounded to 8 bits each time drifts."""
    dtype = torch.promote_types(message.dtype, torch.float32)
    return message.new_zeros(rows, *message.shape[1:], dtype=dtype)
