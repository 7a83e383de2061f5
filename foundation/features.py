"""Crystals as plain vectors: what a frozen encoder makes of them, pooled over atoms and blind to rotations."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from datamodules.batching import GraphArrays
from foundation.encoder.encoder import EquivariantEncoder
from foundation.inference import EDGES_PER_BATCH, Rows, cut_by_cost
from heads.base import invariant_slice
from heads.pooling import crystal_mean

Features = npt.NDArray[np.float64]


@torch.inference_mode()
def crystal_features(encoder: EquivariantEncoder, graphs: GraphArrays, rows: Rows) -> Features:
    """Invariant features of crystals from an encoder as it is, without gradients.

    Args:
        encoder: The encoder, which is put into evaluation mode and used where it is.
        graphs: The crystals, their edges made by the encoder's recipe.
        rows: [K] which of them.

    Returns:
        [K, 2 C], a row per crystal in the order given: the means of its C scalars, then their spreads over atoms.
    """
    encoder.eval()
    device = next(encoder.parameters()).device
    scalars = invariant_slice(encoder.irreps_out)
    features = np.zeros((len(rows), 2 * (scalars.stop - scalars.start)))
    num_edges = graphs.num_edges[rows]
    order = np.argsort(num_edges, kind="stable")
    for places in cut_by_cost(order, num_edges[order], EDGES_PER_BATCH[device.type]):
        batch = graphs.gather(rows[places]).to(device)
        features[places] = mean_and_spread(encoder(batch)[:, scalars], batch).double().cpu().numpy()
    return features


def mean_and_spread(values: Tensor, batch: Any) -> Tensor:
    """Mean and standard deviation over the atoms of each crystal; a crystal and its supercell have the same.

    The spread tells what a mean hides: how unlike the atoms are, and with the mean how far the extremes reach.

    Args:
        values: [N, C] values of atoms.
        batch: The B crystals.

    Returns:
        [B, 2 C].
    """
    mean = crystal_mean(values, batch)
    variance = crystal_mean((values - mean[batch.batch]).square(), batch)
    return torch.cat([mean, variance.sqrt()], dim=1)
