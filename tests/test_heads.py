"""Every kind of head, by the suite that a new one inherits, and what is particular to each."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
from suites import CRYSTALS, HeadSuite
from testing import batch_of, tiny_encoder

from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.properties import Property
from foundation.training.metrics import PropertyMetrics
from foundation.training.module import MultiTaskModule
from heads import ClassificationHead, Head, ScalarHead

ENERGY = Property("energy", "eV/atom")
CUBE = np.eye(3), np.zeros((1, 3))


class TestMean(HeadSuite):
    def make(self, irreps_in: str) -> Head:
        return ScalarHead(irreps_in, ENERGY)


class TestSum(HeadSuite):
    extensive = True

    def make(self, irreps_in: str) -> Head:
        return ScalarHead(irreps_in, Property("total", "eV"), aggregation="sum")


class TestLog(HeadSuite):
    def make(self, irreps_in: str) -> Head:
        return ScalarHead(irreps_in, Property("modulus", "GPa", log=True))


class TestElementReference(HeadSuite):
    def make(self, irreps_in: str) -> Head:
        return ScalarHead(irreps_in, ENERGY, element_reference=True, hidden=6, loss="huber")


class TestSumWithElementReference(HeadSuite):
    extensive = True

    def make(self, irreps_in: str) -> Head:
        return ScalarHead(irreps_in, ENERGY, aggregation="sum", element_reference=True, loss="mse")


class TestClassification(HeadSuite):
    def make(self, irreps_in: str) -> Head:
        return ClassificationHead(irreps_in, Property("is_metal", kind="class"), hidden=6)

    def targets(self) -> Any:
        return np.array([float(crystal.numbers.mean() > 15) for crystal in CRYSTALS])


def fitted(labels: Any, crystals: list[Crystal] | None = None, **arguments: Any) -> ScalarHead:
    head = ScalarHead(str(tiny_encoder().irreps_out), ENERGY, **arguments)
    head.fit_scaler(torch.as_tensor(labels, dtype=torch.float64), batch_of(crystals or CRYSTALS[: len(labels)]))
    return head


def test_mean_and_scale_are_those_of_the_labels() -> None:
    head = fitted([1.0, 2.0, 6.0])
    assert float(head.mean) == pytest.approx(3.0)
    assert float(head.scale) == pytest.approx(np.std([1, 2, 6]))
    assert float(head.predict(torch.zeros(1), batch_of(CRYSTALS[:1]))) == pytest.approx(3.0)


def test_log_means_decades() -> None:
    head = fitted([1.0, 100.0], log=True)
    prediction = head.predict(torch.tensor([0.0, 1.0]), batch_of(CRYSTALS[:2]))
    torch.testing.assert_close(prediction, torch.tensor([10.0, 100.0]))


def test_equal_labels_have_no_spread_to_divide_by() -> None:
    assert float(fitted([2.5, 2.5, 2.5]).scale) == 1.0
    assert float(fitted([2.5]).scale) == 1.0


def test_element_references_explain_composition() -> None:
    salts = [Crystal(np.eye(3), np.zeros((2, 3)), np.array([a, b])) for a in (3, 11, 19) for b in (9, 17, 35)]
    worth = {3: -1.0, 11: -2.0, 19: -4.0, 9: 3.0, 17: 1.0, 35: 0.5}
    labels = [sum(worth[z] for z in salt.numbers.tolist()) / 2 for salt in salts]
    torch.manual_seed(0)
    head = fitted(labels, salts, element_reference=True)
    predicted = head.predict(torch.zeros(len(salts)), batch_of(salts))
    torch.testing.assert_close(predicted, torch.tensor(labels), atol=0.03, rtol=0)
    unseen = Crystal(*CUBE, np.array([92]))  # its reference is the mean over the labels
    assert float(head.predict(torch.zeros(1), batch_of([unseen]))) == pytest.approx(np.mean(labels), abs=0.1)


def test_labels_that_are_not_positive_have_no_logarithm() -> None:
    with pytest.raises(InputError, match=r"energy: log needs positive labels, 2 are not"):
        fitted([1.0, 0.0, -2.0], log=True)


def test_a_class_is_0_or_1() -> None:
    head = ClassificationHead(str(tiny_encoder().irreps_out), Property("is_metal", kind="class"))
    with pytest.raises(InputError, match=r"is_metal: .* labels 0 and 1"):
        head.fit_scaler(torch.tensor([0.0, 2.0]), batch_of(CRYSTALS[:2]))


@pytest.mark.parametrize("labels", [[0.0, 0.0], [1.0, 1.0]])
def test_a_class_that_no_label_has_keeps_finite_odds(labels: list[float]) -> None:
    head = ClassificationHead(str(tiny_encoder().irreps_out), Property("is_metal", kind="class"))
    head.fit_scaler(torch.tensor(labels), batch_of(CRYSTALS[:2]))
    assert abs(float(head.prior)) == pytest.approx(np.log(3))


ORDER = Property("magnetic_order", kind="class", classes=3)


def of_three(**arguments: Any) -> ClassificationHead:
    torch.manual_seed(0)
    return ClassificationHead(str(tiny_encoder().irreps_out), ORDER, **arguments)


def test_probabilities_of_several_classes_start_as_the_labels_are() -> None:
    labels, batch = torch.tensor([0.0] * 5 + [1.0] * 3 + [2.0]), batch_of(CRYSTALS[:9])
    for weights in (None, "balanced", [1.0, 2.0, 5.0]):
        head = of_three(class_weights=weights)
        head.fit_scaler(labels, batch)
        found = head.predict(torch.zeros(9, 3), batch)
        # What weights do to the loss is undone, so that probabilities are those of the labels.
        torch.testing.assert_close(found[0], torch.tensor([6.0, 4.0, 2.0]) / 12)


def test_balanced_classes_weigh_the_same_in_all() -> None:
    head = of_three(class_weights="balanced")
    labels, batch = torch.tensor([0.0] * 5 + [1.0] * 3 + [2.0]), batch_of(CRYSTALS[:9])
    head.fit_scaler(labels, batch)
    shares = (torch.bincount(labels.long()) + 1) * head.weights
    torch.testing.assert_close(shares, shares.mean().expand(3))
    losses = head.loss(torch.randn(9, 3), labels, batch)
    assert losses.shape == (9,)
    module = MultiTaskModule(tiny_encoder(), {"magnetic_order": head})
    batch.labels = torch.where(torch.arange(9) > 2, labels, torch.nan)[:, None]
    sums, counts, answers = module.losses(batch)
    assert counts.tolist() == [6]
    assert torch.isfinite(sums).all()
    assert answers["magnetic_order"].scaled.shape == (6, 3)


def test_metrics_of_several_classes() -> None:
    metrics = PropertyMetrics(of_three(), distributed=False)
    sure = torch.eye(3)[[0, 0, 0, 1, 2]] * 0.9 + 0.1 / 3
    metrics.update(sure, torch.tensor([0.0, 0.0, 1.0, 1.0, torch.nan]))
    found = metrics.compute()
    assert found["accuracy"] == pytest.approx(3 / 4)
    assert found["balanced_accuracy"] == pytest.approx((1 + 0.5) / 2)
    assert {"auroc", "f1", "calibration_error"} <= found.keys()


@pytest.mark.parametrize("classes", [2, 3])
def test_calibration_makes_overconfident_probabilities_honest(classes: int) -> None:
    random = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(4000, classes, generator=random)
    labels = torch.multinomial(torch.softmax(logits, 1), 1, generator=random)[:, 0].double()
    head = ClassificationHead(
        str(tiny_encoder().irreps_out), Property("c", kind="class", classes=0 if classes == 2 else classes)
    )
    scaled = 3 * logits if classes > 2 else 3 * (logits[:, 1] - logits[:, 0])
    batch = batch_of(CRYSTALS[:1])
    assert head.calibrate(head.predict(scaled, batch), labels)
    assert float(head.temperature) == pytest.approx(3.0, rel=0.1)
    found = PropertyMetrics(head, distributed=False)
    found.update(head.predict(scaled, batch), labels)
    assert found.compute()["calibration_error"] < 0.03
    head.calibrate(head.predict(scaled, batch), labels)  # a second time changes nothing
    assert float(head.temperature) == pytest.approx(3.0, rel=0.1)


def test_a_class_head_from_before_there_were_temperatures_loads() -> None:
    head = ClassificationHead(str(tiny_encoder().irreps_out), Property("is_metal", kind="class"))
    old = {name: tensor for name, tensor in head.state_dict().items() if name not in ("weights", "temperature")}
    head.load_state_dict(old)
    assert float(head.temperature) == 1


@pytest.mark.parametrize("weights", [[1.0], [1.0, 0.0, 2.0]])
def test_class_weights_are_one_positive_number_per_class(weights: list[float]) -> None:
    with pytest.raises(InputError, match="magnetic_order: class_weights: give 3 positive numbers"):
        of_three(class_weights=weights)


@pytest.mark.parametrize("change", [{"irreps": "0e+2e"}, {"level": "atom"}])
def test_a_scalar_head_refuses_what_is_no_scalar_of_a_crystal(change: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="tensor: a ScalarHead predicts one scalar per crystal"):
        ScalarHead("8x0e", Property("tensor", "GPa", **change))


def test_a_logarithm_of_a_sum_is_refused() -> None:
    with pytest.raises(InputError, match="log: true needs aggregation: mean"):
        ScalarHead("8x0e", ENERGY, aggregation="sum", log=True)


def test_irreps_without_scalars_are_refused() -> None:
    with pytest.raises(ValueError, match="hold no scalars"):
        ScalarHead("4x1o+2x2e", ENERGY)


@pytest.mark.parametrize(("loss", "expected"), [("l1", 2.0), ("huber", 1.95), ("mse", 4.0)])
def test_losses(loss: Literal["l1", "huber", "mse"], expected: float) -> None:
    head = ScalarHead("8x0e", ENERGY, loss=loss)
    one = head.loss(torch.tensor([2.0]), torch.zeros(1), batch_of(CRYSTALS[:1]))
    assert float(one) == pytest.approx(expected)
