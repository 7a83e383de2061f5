"""The head that pretraining made goes on, for a property it knows already."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.strategies.base import AdaptationStrategy


class KeepHead(AdaptationStrategy):
    """Only the checkpoint's own head of the property trains; its scale stays that of pretraining."""

    keeps_head = True

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """Every stage frozen."""
        return dict.fromkeys(stages, 0.0)
