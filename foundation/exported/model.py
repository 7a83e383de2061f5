"""A model as a function of plain tensors, which is what an export compiles."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from datamodules.batching import CrystalBatch
from foundation.inference import SPREAD, Ensemble


class GraphTensors(NamedTuple):
    """The inputs of a program, for B crystals with N atoms and E edges in all; as in ``CrystalBatch``."""

    z: Tensor  # [N]
    batch: Tensor  # [N]
    num_atoms: Tensor  # [B]
    volume: Tensor  # [B] Angstrom^3, in double precision
    edge_index: Tensor  # [2, E]
    edge_vector: Tensor  # [E, 3] Angstrom
    cutoff: Tensor  # [N] Angstrom

    @classmethod
    def of(cls, batch: CrystalBatch) -> GraphTensors:
        """The tensors of a batch."""
        return cls(*(batch[name] for name in cls._fields))


class PackagedModel(nn.Module):
    """All members of an ensemble, or one model, from plain tensors to named columns in physical units."""

    def __init__(self, ensemble: Ensemble) -> None:
        super().__init__()
        self.encoders = nn.ModuleList(model.encoder for model in ensemble.models)
        self.heads = nn.ModuleList(model.heads for model in ensemble.models)
        self.columns = {name: ensemble.properties[name].column for name in ensemble.names}

    def forward(
        self,
        z: Tensor,
        batch: Tensor,
        num_atoms: Tensor,
        volume: Tensor,
        edge_index: Tensor,
        edge_vector: Tensor,
        cutoff: Tensor,
    ) -> dict[str, Tensor]:
        """Fields of ``GraphTensors`` -> column -> [B]: the members' mean and, where there are several, their spread."""
        graph = GraphTensors(z, batch, num_atoms, volume, edge_index, edge_vector, cutoff)
        members = []
        for encoder, heads in zip(self.encoders, self.heads, strict=True):
            features = encoder.forward(graph)
            members.append({name: heads[name].predict(heads[name](features, graph), graph) for name in self.columns})  # type: ignore[index]
        columns: dict[str, Tensor] = {}
        for name, column in self.columns.items():
            values = torch.stack([member[name] for member in members], dim=1)  # [B, K]
            columns[column] = values.mean(dim=1)
            if len(members) > 1:
                columns[column + SPREAD] = values.std(dim=1)
        return columns
