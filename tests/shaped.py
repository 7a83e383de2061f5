"""The suite that a new head of tensors, spectra or labels of atoms inherits.

``class TestMine(ShapedHeadSuite)`` with a ``make`` that builds it, and ``label`` where labels must be special.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from e3nn import o3
from suites import CRYSTALS
from testing import batch_of, close, default_dtype, random_crystal, rock_salt, supercell, tiny_encoder
from torch import Tensor

from datamodules.crystals import Crystal
from datamodules.point_group import symmetrized, symmetry_operations
from datamodules.tensors import index_symmetries, rank_of, rotated
from foundation.training.metrics import PropertyMetrics
from foundation.training.module import MultiTaskModule
from heads.shaped import ShapedHead


def zincblende() -> Crystal:
    """GaAs: no inversion, no vector on any site."""
    lattice = 2.83 * (np.ones((3, 3)) - np.eye(3))
    return Crystal(lattice, np.array([(0, 0, 0), (0.25, 0.25, 0.25)]), np.array([31, 33]))


def copper() -> Crystal:
    """One atom on a site of full cubic symmetry."""
    return Crystal(1.81 * (np.ones((3, 3)) - np.eye(3)), np.zeros((1, 3)), np.array([29]))


def wurtzite() -> Crystal:
    """ZnO: polar."""
    a, c, u = 3.25, 5.21, 0.38
    lattice = np.array([[a, 0, 0], [-a / 2, a * 3**0.5 / 2, 0], [0, 0, c]])
    coords = np.array([(1 / 3, 2 / 3, 0), (2 / 3, 1 / 3, 0.5), (1 / 3, 2 / 3, u), (2 / 3, 1 / 3, 0.5 + u)])
    return Crystal(lattice, coords, np.array([30, 30, 8, 8]))


def with_symmetry(tensor: Any, formula: str) -> Any:
    """A tensor made symmetric in its indices."""
    for _ in range(6):
        for sign, permutation in index_symmetries(formula):
            tensor = (tensor + sign * tensor.transpose(permutation)) / 2
    return tensor


def turned(crystal: Crystal, rotation: Any) -> Crystal:
    """The crystal in a frame turned by a rotation, proper or not."""
    return replace(crystal, lattice=crystal.lattice @ rotation.T)


class ShapedHeadSuite(ABC):
    """What holds for every head of labels with more than one number."""

    sign_free: ClassVar[bool] = False

    @abstractmethod
    def make(self, irreps_in: str) -> ShapedHead:
        """The head under test."""

    def label(self, crystal: Crystal, random: np.random.Generator) -> Any:
        """A physical label of one crystal, or of all its atoms."""
        size = (len(crystal), *self.shape) if self.per_atom else self.shape
        values = random.normal(size=size)
        if self.formula:
            lead = values if self.per_atom else values[None]
            values = np.stack([with_symmetry(value, self.formula) for value in lead])
            values = values if self.per_atom else values[0]
        return values

    def targets(self, crystals: Sequence[Crystal]) -> Tensor:
        """Physical labels of crystals, the same for the same crystal."""
        made = [np.asarray(self.label(c, np.random.default_rng(int(c.numbers.sum())))) for c in crystals]
        return torch.as_tensor(np.concatenate(made) if self.per_atom else np.stack(made), dtype=torch.float64)

    @pytest.fixture(autouse=True)
    def _double(self) -> Iterator[None]:
        with default_dtype(torch.float64):
            torch.manual_seed(0)
            self.encoder = tiny_encoder()
            made = self.make(str(self.encoder.irreps_out))
            self.shape, self.per_atom, self.formula = made.shape, made.per_atom, getattr(made, "formula", "")
            self.batch = batch_of(CRYSTALS)
            self.target = self.targets(CRYSTALS)
            self.head = made.double()
            self.head.fit_scaler(self.target, self.batch)
            yield

    def features(self, batch: Any) -> Tensor:
        found: Tensor = self.encoder(batch)
        return found

    def predict(self, *crystals: Crystal, head: Any = None, encoder: Any = None) -> Tensor:
        """Physical predictions."""
        batch = batch_of(crystals)
        head, encoder = head or self.head, encoder or self.encoder
        with torch.no_grad():
            found: Tensor = head.predict(head(encoder(batch), batch), batch)
        return found

    def test_shape_of_predictions(self) -> None:
        found = self.predict(*CRYSTALS)
        assert found.shape == self.target.shape
        assert torch.isfinite(found).all()
        assert float(found.std()) > 0

    def test_what_it_predicts_is_what_its_loss_wants(self) -> None:
        scaled = self.head(self.features(self.batch), self.batch).detach()
        physical = self.head.predict(scaled, self.batch)
        best = self.head.loss(scaled, physical, self.batch)
        torch.testing.assert_close(best, torch.zeros_like(best), atol=1e-8, rtol=0)
        other = self.head.loss(scaled + 0.3 * torch.randn_like(scaled), physical, self.batch)
        assert bool((other > best + 1e-6).all())

    def test_scaled_training_labels_are_of_order_one(self) -> None:
        zero = torch.zeros_like(self.head(self.features(self.batch), self.batch))
        assert 1e-2 < float(self.head.loss(zero, self.target, self.batch).mean()) < 5

    def test_its_scale_travels_with_the_weights(self) -> None:
        other = self.make(str(self.encoder.irreps_out)).double()
        other.load_state_dict(copy.deepcopy(self.head.state_dict()))
        assert torch.equal(self.predict(*CRYSTALS, head=other), self.predict(*CRYSTALS))

    def test_the_order_of_the_labels_does_not_set_the_scale(self) -> None:
        other = self.make(str(self.encoder.irreps_out)).double()
        other.fit_scaler(self.targets(CRYSTALS[::-1]), batch_of(CRYSTALS[::-1]))
        for one, two in zip(other.buffers(), self.head.buffers(), strict=True):
            torch.testing.assert_close(one, two)

    def module_with(self, keep: Any) -> MultiTaskModule:
        """A module, and in the batch the labels of the crystals to keep."""
        name = self.head.property.name
        keep = torch.as_tensor(keep)
        rows = keep[self.batch.batch] if self.per_atom else keep
        lost = rows.view(-1, *[1] * (self.target.dim() - 1))
        self.batch.labels = torch.where(keep, 1.0, torch.nan)[:, None]
        self.batch.shaped = {name: torch.where(lost, self.target, torch.nan)}
        return MultiTaskModule(self.encoder, {name: self.head})

    def test_missing_labels_are_masked(self) -> None:
        keep = torch.arange(len(CRYSTALS)) % 3 > 0
        module = self.module_with(keep)
        sums, counts, _ = module.losses(self.batch)
        chosen = [crystal for crystal, kept in zip(CRYSTALS, keep.tolist(), strict=True) if kept]
        batch = batch_of(chosen)
        losses, known = self.head.masked_loss(self.head(self.features(batch), batch), self.targets(chosen), batch)
        assert bool(known.all())
        torch.testing.assert_close(sums[0], losses.sum())
        assert counts.tolist() == [16]  # every labelled crystal counts once
        sums.sum().backward()
        assert all(torch.isfinite(p.grad).all() for p in module.parameters() if p.grad is not None)

    def test_it_runs_on_crystals_with_a_label_only(self) -> None:
        keep = torch.arange(len(CRYSTALS)) % 3 > 0
        module = self.module_with(keep)
        _, _, answers = module.losses(self.batch)
        answer = answers[self.head.property.name]
        assert answer.batch.row.tolist() == self.batch.row[keep].tolist()
        rows = keep[self.batch.batch] if self.per_atom else keep
        whole = self.head(self.features(self.batch), self.batch)
        torch.testing.assert_close(answer.scaled, whole[rows])
        assert torch.equal(answer.target, self.target[rows])

    @pytest.mark.parametrize("knows", [True, False], ids=["no label", "other data"])
    def test_a_batch_without_any_label_has_zero_gradients(self, knows: bool) -> None:
        module = self.module_with(torch.zeros(len(CRYSTALS), dtype=torch.bool))
        if not knows:
            del self.batch.shaped
        sums, counts, _ = module.losses(self.batch)
        sums.sum().backward()
        assert (sums.tolist(), counts.tolist()) == ([0.0], [0])
        gradients = [p.grad for p in self.head.parameters()]
        assert all(gradient is not None and not gradient.any() for gradient in gradients)

    def test_doubtful_labels_count_less(self) -> None:
        module = self.module_with(torch.ones(len(CRYSTALS), dtype=torch.bool))
        whole = module.losses(self.batch)[0]
        self.batch.shaped[self.head.property.name + ".weight"] = torch.full((len(CRYSTALS),), 0.25)
        torch.testing.assert_close(module.losses(self.batch)[0], whole / 4)

    def test_gradients_reach_every_weight_and_the_features(self) -> None:
        features = self.features(self.batch).detach().requires_grad_()
        losses = self.head.loss(self.head(features, self.batch), self.target, self.batch)
        (torch.rand(len(losses)) * losses).sum().backward()
        assert features.grad is not None
        assert features.grad.any()
        assert [name for name, p in self.head.named_parameters() if p.grad is None or not p.grad.any()] == []

    def test_supercell(self) -> None:
        crystal = random_crystal()
        one, two = self.predict(crystal), self.predict(supercell(crystal))
        torch.testing.assert_close(two, one.repeat_interleave(2, dim=0) if self.per_atom else one)

    def test_company_in_the_batch(self) -> None:
        crystal = random_crystal()
        alone = self.predict(crystal)
        torch.testing.assert_close(self.predict(*CRYSTALS[:3], crystal)[-len(alone) :], alone)

    def test_metrics_beside_the_baseline(self) -> None:
        guess = self.head.baseline(self.target, self.batch, self.batch)
        assert guess.shape == self.target.shape
        goal = self.head.comparable(self.target, self.target, self.batch)
        for predicted, perfect in ((goal, True), (guess, False)):
            metrics = PropertyMetrics(self.head, distributed=False)
            metrics.update(predicted, self.head.comparable(predicted, self.target, self.batch))
            found = metrics.compute()
            assert (found["mae"] == pytest.approx(0.0, abs=1e-12)) == perfect


class TensorSuite(ShapedHeadSuite):
    """What rotations and the symmetry of crystals do to tensors, of crystals or of atoms."""

    def rotations(self) -> list[Any]:
        torch.manual_seed(5)
        one = o3.rand_matrix(dtype=torch.float64).numpy()
        return [one, -one]

    def rotated_target(self, target: Tensor, rotation: Any) -> Tensor:
        if not self.formula:
            return target
        return torch.from_numpy(rotated(target.numpy(), rotation, rank_of(self.formula)))

    @pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-11), (torch.float32, 1e-5)])
    def test_predictions_turn_with_the_crystal(self, dtype: torch.dtype, tolerance: float) -> None:
        head, encoder = self.head.to(dtype), self.encoder.to(dtype)
        crystals = [random_crystal(), wurtzite(), zincblende(), *CRYSTALS[:6]]
        with default_dtype(dtype):
            before = self.predict(*crystals, head=head, encoder=encoder).double()
            for rotation in self.rotations():
                after = self.predict(*(turned(c, rotation) for c in crystals), head=head, encoder=encoder).double()
                largest = max(float(before.abs().max()), float(self.target.std()))
                error = float((after - self.rotated_target(before, rotation)).abs().max())
                assert error < tolerance * largest

    def test_losses_do_not_depend_on_the_frame(self) -> None:
        losses = self.head.loss(self.head(self.features(self.batch), self.batch), self.target, self.batch)
        for rotation in self.rotations():
            batch = batch_of([turned(crystal, rotation) for crystal in CRYSTALS])
            target = self.rotated_target(self.target, rotation)
            again = self.head.loss(self.head(self.features(batch), batch), target, batch)
            torch.testing.assert_close(again, losses)

    def test_scales_do_not_depend_on_the_frame(self) -> None:
        for rotation in self.rotations():
            other = self.make(str(self.encoder.irreps_out)).double()
            other.fit_scaler(self.rotated_target(self.target, rotation), self.batch)
            torch.testing.assert_close(other.scaler.scale, self.head.scaler.scale)  # type: ignore[union-attr]

    @pytest.mark.parametrize("make", [rock_salt, zincblende, wurtzite, copper])
    def test_predictions_have_the_symmetry_of_the_crystal(self, make: Any) -> None:
        crystal, rank = make(), rank_of(self.formula) if self.formula else 0
        found = self.predict(crystal).numpy()
        found = found if self.per_atom else found[0]
        mean = symmetrized(found, crystal, rank, self.per_atom)
        assert len(list(symmetry_operations(crystal))) >= 12
        assert np.abs(found - mean).max() < 1e-4 * float(self.target.std())


__all__ = ["ShapedHeadSuite", "TensorSuite", "close", "copper", "turned", "wurtzite", "zincblende"]
