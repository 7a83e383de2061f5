"""What an adaptation strategy is: which parts of the encoder train, how fast, and what else is done to them."""

from __future__ import annotations

import abc
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation.checkpoint import Checkpoint
from foundation.training.module import MultiTaskModule


class AdaptationStrategy(abc.ABC):
    """Says at which rate each part of the encoder trains; the new head always trains at full rate.

    ``rates`` is all that most strategies need. The others also change the module before it trains (``prepare``),
    act while it trains (``callbacks``), or do something with it afterwards (``finish``).

    Attributes:
        starts_from_pretrained: Whether the encoder's weights are taken from the checkpoint.
        keeps_head: Whether the checkpoint's own head of the property goes on training.
        keeps_other_heads: Whether the checkpoint's heads of other properties stay and train.
    """

    starts_from_pretrained: bool = True
    keeps_head: bool = False
    keeps_other_heads: bool = False

    @abc.abstractmethod
    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """Rate of every stage relative to the learning rate; 0 freezes it.

        Args:
            stages: Names of the encoder's parts, in the order the data flows.
        """

    def thaws(self, stages: Sequence[str]) -> dict[str, float]:
        """Share of the steps during which a stage is held still before it trains; none is where it is not named."""
        return {}

    def prepare(  # noqa: B027 - most strategies have nothing to prepare
        self, module: MultiTaskModule, data: CrystalDataModule, pretrained: Checkpoint | None
    ) -> None:
        """Called once the module has its weights and scales, before it trains, also before it is resumed."""

    def callbacks(self) -> list[Callback]:
        """What acts during training."""
        return []

    def finish(self, module: MultiTaskModule, data: CrystalDataModule, folder: Path) -> dict[str, Any]:
        """Called with the trained module, on every process; what it returns stands in metrics.json."""
        return {}


def select(stages: Sequence[str], patterns: Sequence[str]) -> list[str]:
    """The stages that match one of the patterns, where ``*`` stands for anything.

    Raises:
        InputError: If a pattern matches nothing.
    """
    for pattern in patterns:
        if not any(fnmatchcase(stage, pattern) for stage in stages):
            raise InputError(f"pattern {pattern!r} matches no part of the encoder; its parts are {', '.join(stages)}")
    return [stage for stage in stages if any(fnmatchcase(stage, pattern) for pattern in patterns)]


def block_of(stage: str) -> str:
    """``blocks.2`` for ``blocks.2.edge``; embedding and readout are blocks of their own."""
    return stage.rsplit(".", 1)[0] if stage.startswith("blocks.") else stage


def blocks_in(stages: Sequence[str]) -> list[str]:
    """Blocks in the order the data flows: embedding, blocks.0, ..., readout."""
    return list(dict.fromkeys(map(block_of, stages)))


def with_layer_decay(stages: Sequence[str], rates: dict[str, float], decay: float) -> dict[str, float]:
    """Multiply the rates by ``decay`` once per block away from the readout.

    Args:
        stages: Names of the parts in the order the data flows.
        rates: Their rates.
        decay: Between 0 and 1.
    """
    blocks = blocks_in(stages)
    return {stage: rate * decay ** (len(blocks) - 1 - blocks.index(block_of(stage))) for stage, rate in rates.items()}
