"""Only the end of the encoder adapts."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.errors import InputError
from foundation.strategies.base import AdaptationStrategy, block_of, blocks_in, with_layer_decay


class LastBlocks(AdaptationStrategy):
    """The last blocks and the readout train, what comes before is frozen.

    Args:
        count: Blocks that train.
        layer_decay: Factor on the learning rate per block away from the readout; 1 for none.
        rate: Rate of the trained parts relative to the head's.
    """

    def __init__(self, count: int = 1, layer_decay: float = 1.0, rate: float = 1.0) -> None:
        self.count = count
        self.layer_decay = layer_decay
        self.rate = rate

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """The last blocks and the readout at ``rate``, everything else frozen.

        Raises:
            InputError: If the encoder has fewer blocks.
        """
        blocks = blocks_in(stages)[1:-1]
        if not 1 <= self.count <= len(blocks):
            raise InputError(f"last_blocks: count {self.count} does not fit an encoder of {len(blocks)} blocks")
        train = {*blocks[-self.count :], "readout"}
        rates = {stage: self.rate * (block_of(stage) in train) for stage in stages}
        return with_layer_decay(stages, rates, self.layer_decay)
