"""Small updates of the encoder's weights (Hu et al., ICLR 2022) that commute with rotations."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation.checkpoint import Checkpoint
from foundation.strategies.base import AdaptationStrategy, select
from foundation.training.module import MultiTaskModule


class LowRank(AdaptationStrategy):
    """Every weight matrix W of the encoder becomes W + B A of rank ``rank``; only A, B and the head train.

    All of them mix channels and leave the components of a degree alone, so what is added to them commutes with
    rotations. A checkpoint is read with the updates added to the weights, as any other.

    Args:
        rank: Rank of the updates.
        where: Patterns of the parts that are updated.
        rate: Rate of the updates relative to the head's.
    """

    def __init__(self, rank: int = 4, where: Sequence[str] = ("blocks.*", "readout"), rate: float = 1.0) -> None:
        if rank < 1:
            raise InputError(f"low_rank: rank {rank}; give at least 1")
        self.rank = rank
        self.where = list(where)
        self.rate = rate

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """What is updated at ``rate``, everything else frozen.

        Raises:
            InputError: If a pattern matches nothing.
        """
        updated = select(stages, self.where)
        return {stage: self.rate * (stage in updated) for stage in stages}

    def prepare(self, module: MultiTaskModule, data: CrystalDataModule, pretrained: Checkpoint | None) -> None:
        """Put an update on every weight matrix of the parts, and freeze all else in them."""
        for stage in select(list(module.encoder.stages()), self.where):
            part = module.encoder.stages()[stage]
            part.requires_grad_(False)
            for layer in [layer for layer in part.modules() if isinstance(layer, nn.Linear)]:
                parametrize.register_parametrization(layer, "weight", LowRankUpdate(layer.weight, self.rank))
                layer.get_parameter("parametrizations.weight.original").requires_grad_(False)


class LowRankUpdate(nn.Module):
    """W -> W + B A, which begins as W.

    Args:
        weight: [out, in] the weight.
        rank: Rank of B A.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.a = nn.Parameter(torch.empty(min(rank, rows, columns), columns))
        self.b = nn.Parameter(torch.zeros(rows, self.a.shape[0]))
        nn.init.uniform_(self.a, -1 / math.sqrt(columns), 1 / math.sqrt(columns))

    def forward(self, weight: Tensor) -> Tensor:
        """[out, in] -> [out, in]."""
        return torch.addmm(weight, self.b, self.a)
