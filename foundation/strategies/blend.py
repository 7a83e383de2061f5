"""Predictions mixed with those of a forest and support vectors on descriptors, and with the median of the labels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodules.datamodule import CrystalDataModule
from foundation.blending import blend_module
from foundation.classical.blended import Weights
from foundation.classical.companions import fit_companions
from foundation.classical.descriptors import describe
from foundation.strategies.base import AdaptationStrategy
from foundation.training.module import MultiTaskModule


class Blend(AdaptationStrategy):
    """To be combined with another: what it trained is blended afterwards, by weights that are known already.

    ``foundation.auto`` finds them by cross-validation.

    Args:
        weights: How much each says.
    """

    def __init__(self, weights: Weights) -> None:
        self.weights = weights

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """Every stage at full rate: what it is combined with decides."""
        return dict.fromkeys(stages, 1.0)

    def finish(self, module: MultiTaskModule, data: CrystalDataModule, folder: Path) -> dict[str, Any]:
        """Fit the companions to the labels that trained, and blend the module and its last checkpoint."""
        (name,) = data.names
        rows, labels = data.training_labels(name)
        companions = fit_companions(describe(data, rows), labels.numpy(), data.property_of(name))
        blend_module(module, name, companions, self.weights, folder)
        return {}
