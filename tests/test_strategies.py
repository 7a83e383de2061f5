"""Every strategy, by the suite that a new one inherits, and the vocabulary they share."""

from __future__ import annotations

import pytest
from suites import StrategySuite
from testing import tiny_encoder

from datamodules.errors import InputError
from foundation.strategies.base import AdaptationStrategy, select, with_layer_decay
from foundation.strategies.from_scratch import FromScratch
from foundation.strategies.full import Full
from foundation.strategies.last_blocks import LastBlocks
from foundation.strategies.linear_probe import LinearProbe
from foundation.strategies.patterns import Patterns

STAGES = list(tiny_encoder().stages())


class TestLinearProbe(StrategySuite):
    trains, config = frozenset(), "linear_probe"

    def make(self) -> AdaptationStrategy:
        return LinearProbe()


class TestLastBlocks(StrategySuite):
    trains, config = frozenset({"blocks.1.edge", "blocks.1.node", "readout"}), "last_blocks"

    def make(self) -> AdaptationStrategy:
        return LastBlocks()


class TestFull(StrategySuite):
    trains, config = frozenset(STAGES), "full"

    def make(self) -> AdaptationStrategy:
        return Full()


class TestFullWithLayerDecay(StrategySuite):
    trains = frozenset(STAGES)

    def make(self) -> AdaptationStrategy:
        return Full(layer_decay=0.5, rate=0.3)


class TestFromScratch(StrategySuite):
    trains, config = frozenset(STAGES), "from_scratch"

    def make(self) -> AdaptationStrategy:
        return FromScratch()


class TestPatterns(StrategySuite):
    trains = frozenset({"blocks.0.node", "blocks.1.node", "readout"})

    def make(self) -> AdaptationStrategy:
        return Patterns(["blocks.*.node", "readout"])


def test_layer_decay_falls_by_block_towards_the_input() -> None:
    rates = with_layer_decay(STAGES, dict.fromkeys(STAGES, 1.0), 0.5)
    assert list(rates.values()) == [0.125, 0.25, 0.25, 0.5, 0.5, 1.0]


def test_layer_decay_knows_that_ten_follows_nine() -> None:
    stages = ["embedding", *(f"blocks.{index}.edge" for index in range(12)), "readout"]
    rates = list(with_layer_decay(stages, dict.fromkeys(stages, 1.0), 0.5).values())
    assert rates == sorted(rates)


@pytest.mark.parametrize("pattern", ["block.*", "blocks.2.*", "readout.widen", "Readout", ""])
def test_a_pattern_that_matches_nothing_is_an_error(pattern: str) -> None:
    with pytest.raises(InputError, match="matches no part of the encoder; its parts are embedding, ") as caught:
        select(STAGES, ["readout", pattern])
    assert repr(pattern) in str(caught.value)


@pytest.mark.parametrize("count", [0, -1, 3])
def test_last_blocks_that_are_not_there(count: int) -> None:
    with pytest.raises(InputError, match=f"count {count} does not fit an encoder of 2 blocks"):
        LastBlocks(count).rates(STAGES)
