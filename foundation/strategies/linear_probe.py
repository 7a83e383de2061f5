"""The cheapest adaptation: a new head on frozen features."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.strategies.base import AdaptationStrategy


class LinearProbe(AdaptationStrategy):
    """The encoder stays as it is."""

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """Every stage frozen."""
        return dict.fromkeys(stages, 0.0)
