"""The user says which parts adapt."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.strategies.base import AdaptationStrategy, select, with_layer_decay


class Patterns(AdaptationStrategy):
    """The parts that match train, the others are frozen.

    Args:
        unfreeze: Patterns on the encoder's tree, such as ``blocks.2.*`` and ``readout``.
        layer_decay: Factor on the learning rate per block away from the readout; 1 for none.
        rate: Rate of the trained parts relative to the head's.
    """

    def __init__(self, unfreeze: Sequence[str], layer_decay: float = 1.0, rate: float = 1.0) -> None:
        self.unfreeze = list(unfreeze)
        self.layer_decay = layer_decay
        self.rate = rate

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """What matches at ``rate``, everything else frozen.

        Raises:
            InputError: If a pattern matches nothing.
        """
        train = select(stages, self.unfreeze)
        rates = {stage: self.rate * (stage in train) for stage in stages}
        return with_layer_decay(stages, rates, self.layer_decay)
