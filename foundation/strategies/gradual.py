"""From the head downwards, one block after another (Howard & Ruder, ACL 2018)."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.errors import InputError
from foundation.strategies.base import AdaptationStrategy, block_of, blocks_in, with_layer_decay


class Gradual(AdaptationStrategy):
    """The head trains first, then the readout thaws, then the last block, and so on to the embedding.

    Args:
        until: Share of the steps after which the whole encoder trains; blocks thaw at even distances.
        layer_decay: Factor on the learning rate per block away from the readout; 1 for none.
        rate: Rate of the encoder relative to the head's.
    """

    def __init__(self, until: float = 0.4, layer_decay: float = 1.0, rate: float = 1.0) -> None:
        if not 0 < until < 1:
            raise InputError(f"gradual: until {until} is no share of the steps; give one between 0 and 1")
        self.until = until
        self.layer_decay = layer_decay
        self.rate = rate

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """Every stage at ``rate``, decayed towards the input."""
        return with_layer_decay(stages, dict.fromkeys(stages, self.rate), self.layer_decay)

    def thaws(self, stages: Sequence[str]) -> dict[str, float]:
        """The readout is still for the first part of ``until``, the embedding for all of it."""
        blocks = blocks_in(stages)[::-1]
        return {stage: self.until * (blocks.index(block_of(stage)) + 1) / len(blocks) for stage in stages}
