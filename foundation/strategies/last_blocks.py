"""Only the end of the encoder adapts."""

from __future__ import annotations

from collections.abc import Sequence

from datamodules.errors import InputError
from foundation.strategies.base import AdaptationStrategy, with_layer_decay


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
        num_blocks = len({stage.split(".")[1] for stage in stages if stage.startswith("blocks.")})
        if not 1 <= self.count <= num_blocks:
            raise InputError(f"last_blocks: count {self.count} does not fit an encoder of {num_blocks} blocks")
        train = {f"blocks.{index}" for index in range(num_blocks - self.count, num_blocks)} | {"readout"}
        rates = {stage: self.rate * (stage in train or stage.rsplit(".", 1)[0] in train) for stage in stages}
        return with_layer_decay(stages, rates, self.layer_decay)
