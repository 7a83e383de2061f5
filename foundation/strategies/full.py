"""The whole encoder adapts."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.strategies.base import AdaptationStrategy, with_layer_decay


class Full(AdaptationStrategy):
    """Every part trains.

    Args:
        layer_decay: Factor on the learning rate per block away from the readout; 1 for none.
        rate: Rate of the encoder relative to the head's.
    """

    def __init__(self, layer_decay: float = 1.0, rate: float = 1.0) -> None:
        self.layer_decay = layer_decay
        self.rate = rate

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """Every stage at ``rate``, decayed towards the input."""
        return with_layer_decay(stages, dict.fromkeys(stages, self.rate), self.layer_decay)
