"""Several strategies at once, such as last_blocks with l2_sp."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.callbacks import Callback

from datamodules.datamodule import CrystalDataModule
from foundation.checkpoint import Checkpoint
from foundation.strategies.base import AdaptationStrategy
from foundation.training.module import MultiTaskModule


class Combined(AdaptationStrategy):
    """What one of the strategies freezes is frozen, what one slows down is slow, and each does its own besides.

    Args:
        parts: The strategies.
    """

    def __init__(self, parts: Sequence[AdaptationStrategy]) -> None:
        self.parts = list(parts)
        self.starts_from_pretrained = all(part.starts_from_pretrained for part in parts)
        self.keeps_head = any(part.keeps_head for part in parts)
        self.keeps_other_heads = any(part.keeps_other_heads for part in parts)

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """The lowest rate that one of the strategies gives."""
        given = [part.rates(stages) for part in self.parts]
        return {stage: min(rates[stage] for rates in given) for stage in stages}

    def thaws(self, stages: Sequence[str]) -> dict[str, float]:
        """The latest moment that one of the strategies gives."""
        given = [part.thaws(stages) for part in self.parts]
        return {stage: max(thaws.get(stage, 0.0) for thaws in given) for stage in stages}

    def prepare(self, module: MultiTaskModule, data: CrystalDataModule, pretrained: Checkpoint | None) -> None:
        """Each in turn."""
        for part in self.parts:
            part.prepare(module, data, pretrained)

    def callbacks(self) -> list[Callback]:
        """Those of all."""
        return [callback for part in self.parts for callback in part.callbacks()]

    def finish(self, module: MultiTaskModule, data: CrystalDataModule, folder: Path) -> dict[str, Any]:
        """Each in turn."""
        return {key: value for part in self.parts for key, value in part.finish(module, data, folder).items()}
