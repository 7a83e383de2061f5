"""Every strategy, by the suite that a new one inherits, and the vocabulary they share."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from suites import StrategySuite
from testing import assert_equivariant, compounds, default_dtype, make_store, random_crystal, tiny_encoder

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.properties import KNOWN
from foundation.adaptation import Adaptation
from foundation.checkpoint import TRAINING_ONLY, Checkpoint, find_members, load_checkpoint
from foundation.strategies.base import AdaptationStrategy, select, with_layer_decay
from foundation.strategies.combined import Combined
from foundation.strategies.from_scratch import FromScratch
from foundation.strategies.full import Full
from foundation.strategies.gradual import Gradual
from foundation.strategies.interpolate import Interpolate
from foundation.strategies.keep_head import KeepHead
from foundation.strategies.l2_sp import L2SP
from foundation.strategies.last_blocks import LastBlocks
from foundation.strategies.linear_probe import LinearProbe
from foundation.strategies.low_rank import LowRank
from foundation.strategies.patterns import Patterns
from foundation.strategies.replay import Replay
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.run import RunSettings, train
from foundation.training.spec import HeadSpec

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


class TestFreezeEmbedding(StrategySuite):
    trains, config = frozenset(STAGES) - {"embedding"}, "freeze_embedding"

    def make(self) -> AdaptationStrategy:
        return Patterns(["blocks.*", "readout"])


class TestTwoBody(StrategySuite):
    trains, config = frozenset({"blocks.0.edge", "blocks.1.edge"}), "two_body"

    def make(self) -> AdaptationStrategy:
        return Patterns(["blocks.*.edge"])


class TestThreeBody(StrategySuite):
    trains, config = frozenset({"blocks.0.node", "blocks.1.node"}), "three_body"

    def make(self) -> AdaptationStrategy:
        return Patterns(["blocks.*.node"])


class TestKeepHead(StrategySuite):
    trains, config = frozenset(), "keep_head"

    def make(self) -> AdaptationStrategy:
        return KeepHead()

    def test_the_encoder_starts_from_the_checkpoint(self, tiny_run: Path, tiny_store: Path) -> None:
        module, checkpoint, _ = self.adapted(tiny_run, tiny_store)
        own = module.heads["band_gap"].state_dict()
        assert own
        assert all(torch.equal(checkpoint.weights[f"heads.band_gap.{key}"], value) for key, value in own.items())
        encoder = module.encoder.state_dict()
        assert all(torch.equal(checkpoint.weights[f"encoder.{key}"], value) for key, value in encoder.items())

    def test_a_property_without_a_head_is_refused(self, tiny_run: Path, tiny_store: Path) -> None:
        checkpoint = load_checkpoint(find_members(str(tiny_run))[0])
        head = HeadSpec("heads.ScalarHead", {}, KNOWN["shear_modulus"])
        with pytest.raises(InputError, match=r"has no head for shear_modulus to keep; it has formation_energy"):
            Adaptation.of(head, {}, Optimization(), self.make(), checkpoint)


class TestGradual(StrategySuite):
    trains, config = frozenset(STAGES), "gradual"

    def make(self) -> AdaptationStrategy:
        return Gradual()

    def test_blocks_thaw_from_the_readout_down(self) -> None:
        thaws = list(Gradual(until=0.4).thaws(STAGES).values())
        assert thaws == pytest.approx([0.4, 0.3, 0.3, 0.2, 0.2, 0.1])

    def test_what_is_still_frozen_does_not_move(self, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
        module, _, data = self.adapted(tiny_run, tiny_store)
        before = {name: tensor.clone() for name, tensor in module.encoder.named_parameters()}
        steps = len(data.train_dataloader())
        # The schedule spans ten epochs, of which two are run: the readout has thawed, the blocks have not.
        object.__setattr__(module.optimization, "schedule_epochs", 10)
        self.trained(module, data, tmp_path, max_epochs=2, max_steps=2 * steps)
        moved = {name for name, tensor in module.encoder.named_parameters() if not torch.equal(tensor, before[name])}
        assert moved
        assert all(name.startswith("readout.") for name in moved)


class TestL2SP(StrategySuite):
    trains, config = frozenset(STAGES), "l2_sp"

    def make(self) -> AdaptationStrategy:
        return L2SP(strength=10.0)

    def test_a_strong_pull_holds_the_encoder_where_it_started(
        self, tiny_run: Path, tiny_store: Path, tmp_path: Path
    ) -> None:
        far = []
        for strength in (0.0, 1e6):
            module, checkpoint, data = self.adapted(tiny_run, tiny_store)
            self.strategy = L2SP(strength)
            self.strategy.prepare(module, data, checkpoint)
            self.trained(module, data, tmp_path / str(strength), max_epochs=2)
            far.append(_distance(module, checkpoint))
        assert far[1] < 1e-6 * far[0]


class TestInterpolate(StrategySuite):
    trains, config = frozenset(STAGES), "interpolate"

    def make(self) -> AdaptationStrategy:
        return Interpolate()

    def test_training_moves_what_trains_and_nothing_else(
        self, tiny_run: Path, tiny_store: Path, tmp_path: Path
    ) -> None:
        module, checkpoint, data = self.adapted(tiny_run, tiny_store)
        self.trained(module, data, tmp_path, max_epochs=2)
        found = json.loads((tmp_path / "metrics.json").read_text())["interpolation"]
        losses = {float(share): loss for share, loss in found["val_loss"].items()}
        assert losses[found["share"]] == min(losses.values())
        assert len(set(losses.values())) == len(losses) == 11
        saved = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
        assert all(torch.equal(tensor, saved.weights[name]) for name, tensor in module.state_dict().items())
        assert (_distance(module, checkpoint) == 0) == (found["share"] == 0)

    def test_without_validation_there_is_nothing_to_choose_by(self, tiny_run: Path, tiny_store: Path) -> None:
        head = HeadSpec("heads.ScalarHead", {}, KNOWN["band_gap"])
        checkpoint = load_checkpoint(find_members(str(tiny_run))[0])
        adaptation = Adaptation.of(head, {}, Optimization(), self.make(), checkpoint)
        data = CrystalDataModule(str(tiny_store), val_share=0.0)
        data.choose(["band_gap"], adaptation.spec.build_encoder().recipe)
        with pytest.raises(InputError, match="interpolate: needs validation crystals"):
            adaptation.module(data, 0)


class TestLowRank(StrategySuite):
    trains, config = frozenset(STAGES) - {"embedding"}, "low_rank"

    def make(self) -> AdaptationStrategy:
        return LowRank(rank=2)

    def test_training_moves_what_trains_and_nothing_else(
        self, tiny_run: Path, tiny_store: Path, tmp_path: Path
    ) -> None:
        module, checkpoint, data = self.adapted(tiny_run, tiny_store)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.trained(module, data, tmp_path, max_epochs=2)
        moved = [
            name
            for name, tensor in module.encoder.named_parameters()
            if not torch.equal(tensor, before[f"encoder.{name}"])
        ]
        assert moved
        assert all(name.endswith((".weight.0.a", ".weight.0.b")) for name in moved)
        trains = sum(p.numel() for p in module.encoder.parameters() if p.requires_grad)
        assert 0 < trains < sum(tensor.numel() for tensor in checkpoint.weights.values()) / 2

    def test_the_encoder_starts_from_the_checkpoint(self, tiny_run: Path, tiny_store: Path) -> None:
        module, checkpoint, _ = self.adapted(tiny_run, tiny_store)
        for name, layer in module.encoder.named_modules():
            if isinstance(layer, torch.nn.Linear):
                assert torch.equal(layer.weight, checkpoint.weights[f"encoder.{name}.weight"])

    def test_merging_changes_no_prediction(self, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
        module, checkpoint, data = self.adapted(tiny_run, tiny_store)
        self.trained(module, data, tmp_path, max_epochs=2)
        merged = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
        kept = (name for name in checkpoint.weights if not name.startswith(TRAINING_ONLY))
        assert set(merged.weights) == {name for name in kept if "formation" not in name}
        module.eval()
        for batch in data.loader("test"):
            with torch.no_grad():
                torch.testing.assert_close(merged.build()(batch), module(batch), atol=1e-6, rtol=1e-6)

    def test_updates_commute_with_rotations(self, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
        module, _, data = self.adapted(tiny_run, tiny_store)
        self.trained(module, data, tmp_path, max_epochs=1)
        encoder = module.encoder.double().eval()
        with default_dtype(torch.float64):
            assert_equivariant(encoder, random_crystal(), tolerance=1e-9, improper=True)


class TestCombined(StrategySuite):
    trains = frozenset({"blocks.1.edge", "blocks.1.node", "readout"})

    def make(self) -> AdaptationStrategy:
        return Combined([LastBlocks(), L2SP(), Gradual()])

    def test_it_has_what_each_of_them_has(self) -> None:
        made = self.make()
        assert made.thaws(STAGES) == Gradual().thaws(STAGES)
        assert len(made.callbacks()) == 1


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


class TestReplay:
    """It needs a store to rehearse, so it has tests of its own."""

    def start(self, run: Path, store: Path) -> tuple[MultiTaskModule, CrystalDataModule, Replay]:
        checkpoint = load_checkpoint(find_members(str(run))[0])
        strategy = Replay(str(store), share=0.5)
        head = HeadSpec("heads.ScalarHead", {}, KNOWN["shear_modulus"])
        adaptation = Adaptation.of(head, {}, Optimization(), strategy, checkpoint)
        fresh = store.parent / f"{run.name}-half"
        if not fresh.exists():
            make_store(fresh, compounds(20, seed=5))
        data = CrystalDataModule(str(fresh), batch_size=4)
        data.choose(["shear_modulus"], adaptation.spec.build_encoder().recipe)
        return adaptation.module(data, 0)[0], data, strategy

    def test_old_heads_stay_and_batches_alternate(self, tiny_run: Path, tiny_store: Path) -> None:
        module, data, _ = self.start(tiny_run, tiny_store)
        assert module.names == ["shear_modulus", "formation_energy_per_atom", "band_gap"]
        loader = data.train_dataloader()
        widths = [batch.labels.shape[1] for batch in loader]
        assert len(widths) == len(loader)
        assert widths.count(1) == len(data.split.train) // 4 + (len(data.split.train) % 4 > 0)
        assert 0 < widths.count(3) <= widths.count(1)
        assert all(torch.isnan(batch.labels[:, 0]).all() for batch in loader if batch.labels.shape[1] == 3)

    def test_no_formula_that_tests_is_rehearsed(self, tiny_run: Path, tiny_store: Path) -> None:
        _, data, _ = self.start(tiny_run, tiny_store)
        assert data.rehearsal is not None
        old = data.rehearsal.data
        tested = {data.store.formulas[row] for row in data.split.test}
        assert not {old.store.formulas[row] for row in old.split.train} & tested
        gone = {old.store.formulas[row] for row in old.split.train[:3]}
        old.leave_out(gone)
        assert not {old.store.formulas[row] for row in old.split.train} & gone
        with pytest.raises(InputError, match="no crystal is left to train"):
            old.leave_out(set(old.store.formulas))

    def test_it_says_what_was_forgotten(self, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
        module, data, strategy = self.start(tiny_run, tiny_store)
        arguments = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": 2}
        results = train(module, data, RunSettings(tmp_path), arguments, {}, strategy)
        forgotten = results["forgotten"]
        assert set(forgotten) == {"formation_energy_per_atom", "band_gap"}
        assert all(entry["before"]["mae"] != entry["after"]["mae"] for entry in forgotten.values())
        assert set(load_checkpoint(tmp_path / "checkpoints" / "last.ckpt").spec.heads) == set(module.names)

    def test_another_store_is_refused(self, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
        other = make_store(tmp_path / "other", compounds(30, seed=9))
        with pytest.raises(InputError, match="is not the store that"):
            self.start(tiny_run, other)

    def test_it_needs_a_store(self) -> None:
        with pytest.raises(InputError, match=r"replay: say which store to rehearse"):
            Replay()


def _distance(module: MultiTaskModule, checkpoint: Checkpoint) -> float:
    """How far the encoder is from where it started."""
    weights = module.encoder.state_dict()
    return sum(float((weights[name] - checkpoint.weights[f"encoder.{name}"]).abs().sum()) for name in weights)
