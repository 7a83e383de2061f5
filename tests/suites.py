"""Suites that a new head or strategy inherits.

A head's test is ``class TestMine(HeadSuite)`` with a ``make`` that builds it, a strategy's is
``class TestMine(StrategySuite)`` with a ``make`` and the names of the stages that train.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from testing import batch_of, compounds, default_dtype, random_crystal, supercell, tiny_encoder
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from datamodules.graph import NeighborRecipe
from datamodules.properties import Property
from foundation.adaptation import Adaptation
from foundation.checkpoint import Checkpoint, find_members, load_checkpoint
from foundation.paths import shipped_configs
from foundation.strategies.base import AdaptationStrategy
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization, parameter_groups
from foundation.training.run import RunSettings, train
from foundation.training.spec import HeadSpec, ModelSpec, import_subclass
from heads import Head

CRYSTALS = compounds(24)


class HeadSuite(ABC):
    """What holds for every head of one value per crystal."""

    extensive: ClassVar[bool] = False

    @abstractmethod
    def make(self, irreps_in: str) -> Head:
        """The head under test."""

    def targets(self) -> Any:
        """[24] physical labels of ``CRYSTALS``; positive, so that a logarithm exists."""
        values = np.array([0.2 + float(crystal.numbers.mean()) / 10 for crystal in CRYSTALS])
        return values * [len(crystal) for crystal in CRYSTALS] if self.extensive else values

    @pytest.fixture(autouse=True)
    def _double(self) -> Iterator[None]:
        with default_dtype(torch.float64):
            torch.manual_seed(0)
            self.encoder = tiny_encoder()
            self.batch = batch_of(CRYSTALS)
            self.target = torch.as_tensor(self.targets(), dtype=torch.float64)
            self.head = self.fitted()
            yield

    def fitted(self) -> Head:
        head = self.make(str(self.encoder.irreps_out)).double()
        head.fit_scaler(self.target, self.batch)
        return head

    def predict(self, *crystals: Any) -> Tensor:
        """[B] physical predictions."""
        batch = batch_of(crystals, NeighborRecipe())
        with torch.no_grad():
            return self.head.predict(self.head(self.encoder(batch), batch), batch)

    def test_one_finite_value_per_crystal(self) -> None:
        scaled = self.head(self.encoder(self.batch), self.batch)
        assert scaled.shape == self.head.predict(scaled, self.batch).shape == (len(CRYSTALS),)
        assert torch.isfinite(self.head.predict(scaled, self.batch)).all()

    def test_what_it_predicts_is_what_its_loss_wants(self) -> None:
        scaled = torch.randn(len(CRYSTALS))
        physical = self.head.predict(scaled, self.batch)
        best = self.head.loss(scaled, physical, self.batch)
        for step in (-0.1, 0.1):
            assert bool((self.head.loss(scaled + step, physical, self.batch) > best).all())
        if not self.head.is_classifier:
            torch.testing.assert_close(best, torch.zeros_like(best), atol=1e-9, rtol=0)

    def test_scaled_training_labels_are_of_order_one(self) -> None:
        zero = torch.zeros(len(CRYSTALS))
        assert 1e-3 < float(self.head.loss(zero, self.target, self.batch).mean()) < 5

    def test_its_scale_travels_with_the_weights_and_stays(self) -> None:
        other = self.make(str(self.encoder.irreps_out)).double()
        other.fit_scaler(self.target.flip(0), batch_of(CRYSTALS[::-1][:12] + CRYSTALS[:12]))
        other.load_state_dict(self.head.state_dict())
        scales = copy.deepcopy(dict(self.head.named_buffers()))
        assert scales
        features = self.encoder(self.batch).detach()
        for head in (self.head, other):
            optimizer = torch.optim.SGD(head.parameters(), lr=1e-3)
            head.train()
            head.loss(head(features, self.batch), self.target, self.batch).mean().backward()
            optimizer.step()
            assert all(torch.equal(buffer, scales[name]) for name, buffer in head.named_buffers())
        first, second = (head.predict(head(features, self.batch), self.batch) for head in (self.head, other))
        assert torch.equal(first, second)

    def test_the_order_of_the_labels_does_not_set_the_scale(self) -> None:
        other = self.make(str(self.encoder.irreps_out)).double()
        other.fit_scaler(self.target.flip(0), batch_of(CRYSTALS[::-1]))
        for one, two in zip(other.buffers(), self.head.buffers(), strict=True):
            torch.testing.assert_close(one, two)

    def test_loss_is_elementwise(self) -> None:
        scaled = torch.randn(len(CRYSTALS))
        whole = self.head.loss(scaled, self.target, self.batch)
        assert whole.shape == (len(CRYSTALS),)
        part = self.head.loss(scaled[5:9], self.target[5:9], batch_of(CRYSTALS[5:9]))
        torch.testing.assert_close(part, whole[5:9])

    def test_missing_labels_are_masked(self) -> None:
        labels = self.target.clone()
        labels[::3] = torch.nan
        module = MultiTaskModule(self.encoder, {"one": self.head})
        self.batch.labels = labels[:, None]
        sums, counts, _ = module.losses(self.batch)
        expected = self.head.loss(self.head(self.encoder(self.batch), self.batch), self.target, self.batch)
        torch.testing.assert_close(sums[0], expected[~labels.isnan()].sum())
        assert counts.tolist() == [16]
        sums.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)

    def test_a_batch_without_any_label_has_zero_gradients(self) -> None:
        module = MultiTaskModule(self.encoder, {"one": self.head})
        self.batch.labels = torch.full((len(CRYSTALS), 1), torch.nan)
        sums, counts, _ = module.losses(self.batch)
        sums.sum().backward()
        assert (sums.tolist(), counts.tolist()) == ([0.0], [0])
        gradients = [p.grad for p in self.head.parameters()]
        assert all(gradient is not None and not gradient.any() for gradient in gradients)

    def test_gradients_reach_every_weight_and_the_features(self) -> None:
        features = self.encoder(self.batch).detach().requires_grad_()
        losses = self.head.loss(self.head(features, self.batch), self.target, self.batch)
        (torch.rand(len(losses)) * losses).sum().backward()  # signs of an absolute loss could cancel
        assert features.grad is not None
        assert features.grad.any()
        assert [name for name, p in self.head.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_supercell(self) -> None:
        crystal = random_crystal()
        one, two = self.predict(crystal), self.predict(supercell(crystal))
        torch.testing.assert_close(two, 2 * one if self.extensive else one)

    def test_company_in_the_batch(self) -> None:
        crystal = random_crystal()
        torch.testing.assert_close(self.predict(*CRYSTALS[:3], crystal)[3:], self.predict(crystal))

    def test_it_can_be_described_and_built_again(self) -> None:
        head = self.head
        path = f"{type(head).__module__}.{type(head).__qualname__}"
        plain = HeadSpec(path, {}, head.property)
        spec = ModelSpec({}, {head.property.name: plain})
        assert ModelSpec.from_dict(spec.as_dict()) == spec
        assert isinstance(head.property, Property)


class StrategySuite(ABC):
    """What holds for every strategy, on the tiny pretrained encoder of two blocks."""

    trains: frozenset[str]
    config: str | None = None  # name among configs/strategies

    @abstractmethod
    def make(self) -> AdaptationStrategy:
        """The strategy under test."""

    def test_rates_name_every_stage_in_order(self) -> None:
        stages = list(tiny_encoder().stages())
        rates = self.make().rates(stages)
        assert list(rates) == stages
        assert {stage for stage, rate in rates.items() if rate > 0} == self.trains
        assert all(0 <= rate <= 1 for rate in rates.values())

    def test_only_what_trains_is_given_to_the_optimizer(self) -> None:
        encoder = tiny_encoder()
        stages = encoder.stages()
        rates = self.make().rates(list(stages))
        MultiTaskModule(encoder, {}, rates=rates)
        given = {id(p) for group in parameter_groups(stages, rates, [], Optimization()) for p in group["params"]}
        assert given == {id(p) for name in self.trains for p in stages[name].parameters()}
        assert given == {id(p) for p in encoder.parameters() if p.requires_grad}

    def test_its_configuration_builds_it(self) -> None:
        if self.config is None:
            pytest.skip("no configuration file of its own")
        content = yaml.safe_load((shipped_configs() / "strategies" / f"{self.config}.yaml").read_text())["strategy"]
        built = import_subclass(content["class_path"], AdaptationStrategy)(**content.get("init_args", {}))
        assert type(built) is type(self.make())

    def adapted(self, run: Path, store: Path) -> tuple[MultiTaskModule, Checkpoint, CrystalDataModule]:
        """The tiny encoder with a new head for a property that pretraining knew already."""
        self.checkpoint = load_checkpoint(find_members(str(run))[0])
        self.strategy = self.make()
        head = self.checkpoint.spec.heads["band_gap"]
        adaptation = Adaptation.of(head, {}, Optimization(), self.strategy, self.checkpoint)
        data = CrystalDataModule(str(store), batch_size=8)
        data.choose(["band_gap"], adaptation.spec.build_encoder().recipe)
        module, lines = adaptation.module(data, seed=7)
        assert lines[-1].startswith("frozen: ")
        return module, self.checkpoint, data

    def trained(self, module: MultiTaskModule, data: CrystalDataModule, folder: Path, **trainer: Any) -> None:
        """Train as ``foundation adapt`` does."""
        arguments = {"accelerator": "cpu", "enable_progress_bar": False, **trainer}
        train(module, data, RunSettings(folder), arguments, {}, self.strategy)

    def test_the_encoder_starts_from_the_checkpoint(self, tiny_run: Path, tiny_store: Path) -> None:
        module, checkpoint, _ = self.adapted(tiny_run, tiny_store)
        given = [torch.equal(checkpoint.weights[f"encoder.{k}"], v) for k, v in module.encoder.state_dict().items()]
        assert all(given) == self.make().starts_from_pretrained
        fresh = [torch.equal(checkpoint.weights[f"heads.{k}"], v) for k, v in module.heads.named_parameters()]
        assert not any(fresh)

    def test_no_step_changes_no_prediction(self, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
        module, checkpoint, data = self.adapted(tiny_run, tiny_store)
        if not self.make().starts_from_pretrained:
            pytest.skip("nothing is transferred")
        old = checkpoint.build()
        del old.heads["formation_energy_per_atom"]
        module.heads.load_state_dict(old.heads.state_dict())
        self.trained(module, data, tmp_path, max_steps=0)
        module.eval()
        for batch in data.loader("all"):
            with torch.no_grad():
                assert torch.equal(module(batch)["band_gap"], checkpoint.build()(batch)["band_gap"])

    def test_training_moves_what_trains_and_nothing_else(
        self, tiny_run: Path, tiny_store: Path, tmp_path: Path
    ) -> None:
        module, _, data = self.adapted(tiny_run, tiny_store)
        before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        self.trained(module, data, tmp_path, max_epochs=2)
        saved = load_checkpoint(tmp_path / "checkpoints" / "last.ckpt").weights
        for state in (module.state_dict(), saved):
            for name in module.encoder.stages():
                keys = [key for key in before if key.startswith(f"encoder.{name}.")]
                moved = [key for key in keys if not torch.equal(before[key], state[key])]
                assert bool(moved) == (name in self.trains), f"{name}: {moved}"
            assert any(not torch.equal(before[key], state[key]) for key in before if key.startswith("heads."))

    def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(
        self, tiny_run: Path, tiny_store: Path, tmp_path: Path
    ) -> None:
        last = tmp_path / "parts" / "checkpoints" / "last.ckpt"
        for folder, epochs, resume in (("whole", 4, None), ("parts", 2, None), ("parts", 4, str(last))):
            module, _, data = self.adapted(tiny_run, tiny_store)
            object.__setattr__(module.optimization, "schedule_epochs", 4)
            arguments = {"accelerator": "cpu", "enable_progress_bar": False, "max_epochs": epochs}
            train(module, data, RunSettings(tmp_path / folder, resume=resume), arguments, {}, self.strategy)
        whole, parts = (
            load_checkpoint(tmp_path / folder / "checkpoints" / "last.ckpt").weights for folder in ("whole", "parts")
        )
        assert all(torch.equal(whole[name], parts[name]) for name in whole)
