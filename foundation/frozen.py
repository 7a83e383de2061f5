"""What a frozen part of the encoder makes of the crystals, computed once instead of in every epoch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from tqdm import tqdm

from datamodules.datamodule import CrystalDataModule
from datamodules.known import KnownFeatures
from foundation.encoder.encoder import EquivariantEncoder
from foundation.inference import EDGES_PER_BATCH, cut_by_cost

MAX_BYTES = 2 << 30  # beyond this the features are computed anew in every step


def frozen_blocks(encoder: EquivariantEncoder, rates: Mapping[str, float]) -> int | None:
    """How many blocks, counted from the embedding, stand before the first part that trains.

    Args:
        encoder: The encoder.
        rates: Rate of each of its stages, 0 for frozen.

    Returns:
        None if the embedding trains; one more than there are blocks if nothing does.
    """
    if rates["embedding"] > 0:
        return None
    for index in range(len(encoder.blocks)):
        if any(rate > 0 for stage, rate in rates.items() if stage.startswith(f"blocks.{index}.")):
            return index
    return len(encoder.blocks) + (rates["readout"] == 0)


@torch.no_grad()
def known_features(
    encoder: EquivariantEncoder, blocks: int, data: CrystalDataModule, edges: bool = False
) -> KnownFeatures | None:
    """Features of the atoms of all crystals that train and validate, behind the first blocks.

    Args:
        encoder: The encoder; what is computed here must not train.
        blocks: How many blocks; one more than there are includes the readout.
        data: The data, its property chosen.
        edges: Whether a head looks at the neighbours of atoms.

    Returns:
        None if they would take more than two gigabytes.
    """
    rows = np.concatenate([data.split.train, data.split.val])
    graphs = data.graphs
    num_atoms = np.diff(graphs.atom_ptr)[rows]
    encoder.eval()
    device = next(encoder.parameters()).device
    parts, total = [], 0
    for chunk in tqdm(
        cut_by_cost(rows, graphs.num_edges[rows], EDGES_PER_BATCH["cpu"]),
        desc="frozen part",
        unit=" batches",
        disable=None,
        delay=2,
    ):
        features = [part.cpu() for part in encoder.features_after(graphs.gather(chunk).to(device), blocks).features]
        parts.append(features)
        total += sum(feature.nbytes for feature in features)
        if total / sum(len(part[0]) for part in parts) * num_atoms.sum() > MAX_BYTES:
            return None
    joined = [torch.cat(feature) for feature in zip(*parts, strict=True)]
    return KnownFeatures(blocks, edges or blocks <= len(encoder.blocks), rows, num_atoms, joined)
