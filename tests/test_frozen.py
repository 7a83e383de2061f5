"""What a frozen part of the encoder makes is computed once, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from testing import tiny_encoder

from datamodules.datamodule import CrystalDataModule
from datamodules.properties import KNOWN
from foundation import frozen
from foundation.adaptation import Adaptation
from foundation.checkpoint import find_members, load_checkpoint
from foundation.frozen import frozen_blocks
from foundation.inference import Ensemble
from foundation.strategies.base import AdaptationStrategy
from foundation.strategies.full import Full
from foundation.strategies.last_blocks import LastBlocks
from foundation.strategies.linear_probe import LinearProbe
from foundation.strategies.patterns import Patterns
from foundation.training.optimization import Optimization
from foundation.training.run import RunSettings, train
from foundation.training.spec import HeadSpec


@pytest.mark.parametrize(
    ("strategy", "blocks"),
    [
        (Full(), None),
        (LinearProbe(), 3),
        (LastBlocks(1), 1),
        (LastBlocks(2), 0),
        (Patterns(["blocks.1.node"]), 1),
        (Patterns(["readout"]), 2),
    ],
)
def test_how_many_blocks_are_frozen(strategy: AdaptationStrategy, blocks: int | None) -> None:
    encoder = tiny_encoder()
    assert frozen_blocks(encoder, strategy.rates(list(encoder.stages()))) == blocks


@pytest.mark.parametrize("blocks", range(4))
def test_going_on_from_any_block_gives_the_same_features(tiny_store: Path, blocks: int) -> None:
    encoder = tiny_encoder()
    data = CrystalDataModule(str(tiny_store))
    data.choose(["band_gap"], encoder.recipe)
    known = frozen.known_features(encoder, blocks, data)
    assert known is not None
    rows = np.concatenate([data.split.val, data.split.train[::-2]])  # in another order than they were made
    assert known.covers(rows)
    assert not known.covers(data.split.test)
    with torch.no_grad():
        whole, rest = encoder(data.graphs.gather(rows)), encoder(data.graphs.gather(rows), known.take(rows))
    torch.testing.assert_close(whole, rest, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", [LinearProbe(), LastBlocks(1)], ids=["linear_probe", "last_blocks"])
def test_training_is_the_same_with_and_without(
    strategy: AdaptationStrategy, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(find_members(str(tiny_run))[0])
    predictions = []
    for cache in (True, False):
        head = HeadSpec("heads.ScalarHead", {}, KNOWN["shear_modulus"])
        made = Adaptation.of(head, {}, Optimization(), strategy, checkpoint)
        data = CrystalDataModule(str(tiny_store), batch_size=8)
        data.choose(["shear_modulus"], made.spec.build_encoder().recipe)
        module, _ = Adaptation(made.spec, made.optimization, strategy, checkpoint, cache=cache).module(data, 0)
        assert (data.known is not None) == cache
        arguments = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 3}
        train(module, data, RunSettings(tmp_path / str(cache)), arguments, {}, strategy)
        for part in ("val", "test"):
            predictions.append(Ensemble([module]).predict(data.loader(part))["shear_modulus"])
    for one, two in zip(predictions[:2], predictions[2:], strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4)


def test_features_too_large_to_keep_are_not_kept(tiny_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "MAX_BYTES", 1000)
    encoder = tiny_encoder()
    data = CrystalDataModule(str(tiny_store))
    data.choose(["band_gap"], encoder.recipe)
    assert frozen.known_features(encoder, 1, data) is None
