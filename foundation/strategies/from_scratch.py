"""The baseline: nothing is transferred."""

from __future__ import annotations

from collections.abc import Sequence

from foundation.strategies.base import AdaptationStrategy


class FromScratch(AdaptationStrategy):
    """The checkpoint gives the architecture only; all weights start fresh and train."""

    starts_from_pretrained = False

    def rates(self, stages: Sequence[str]) -> dict[str, float]:
        """Every stage at full rate."""
        return dict.fromkeys(stages, 1.0)
