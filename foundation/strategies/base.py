"""What an adaptation strategy is: which parts of the encoder train, and how fast."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from fnmatch import fnmatchcase

from datamodules.errors import InputError


class AdaptationStrategy(abc.ABC):
    """Says at which rate each part of the encoder trains; the new head always trains at full rate.

    Attributes:
        starts_from_pretrained: Whether the encoder's weights are taken from the checkpoint.
    """

    starts_from_pretrained: bool = True

    @abc.abstractmethod
    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """Rate of every stage relative to the learning rate; 0 freezes it.

        Args:
            stages: Names of the encoder's parts, in the order the data flows.
        """


def select(stages: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The stages that match one of the patterns, where ``*`` stands for anything.

    Raises:
        InputError: If a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatchcase(stage, pattern) for stage in stages):
            raise InputError(f"pattern {pattern!r} matches no part of the encoder; its parts are {', '.join(stages)}")
    return [stage for stage in stages if any(fnmatchcase(stage, pattern) for pattern in patterns)]


def with_layer_decay(stages: Sequence[str], rates: dict[str, float], decay: float) -> dict[str, float]:
    """Multiply the rates by ``decay`` once per block away from the readout.

    Args:
        stages: Names of the parts in the order the data flows.
        rates: Their rates.
        decay: Between 0 and 1.
    """
    blocks = list(dict.fromkeys(stage.rsplit(".", 1)[0] for stage in stages if stage.startswith("blocks.")))
    depth = {"embedding": len(blocks) + 1, "readout": 0}
    depth |= {block: len(blocks) - index for index, block in enumerate(blocks)}
    return {
        stage: rate * decay ** depth[stage.rsplit(".", 1)[0] if stage.startswith("blocks.") else stage]
        for stage, rate in rates.items()
    }
