"""Predictions that go only a part of the way from the median of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.datamodule import CrystalDataModule
from foundation.checkpoint import replace_weights
from foundation.strategies.base import AdaptationStrategy
from foundation.training.module import MultiTaskModule
from heads.scalar import ScalarHead


class Shrink(AdaptationStrategy):
    """To be combined with another: afterwards, the head's predictions are moved towards the median of its labels.

    With few labels a model says more than it knows; how much is found by cross-validation (``foundation.auto``).

    Args:
        share: 1 leaves predictions as they are, 0 makes all of them the median.
    """

    def __init__(self, share: float) -> None:
        self.share = share

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """Every stage at full rate: what it is combined with decides."""
        return dict.fromkeys(stages, 1.0)

    def finish(self, module: MultiTaskModule, data: CrystalDataModule, folder: Path) -> dict[str, Any]:
        """Move the predictions, in the module and in its last checkpoint."""
        (name,) = data.names
        head = module.heads[name]
        assert isinstance(head, ScalarHead)
        head.shrink(float(data.training_labels(name)[1].median()), self.share)
        replace_weights(folder / "checkpoints" / "last.ckpt", module.state_dict())
        return {}
