"""Training: resumed exactly, scaled by training labels only, stopped by a loss that is not a number."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from testing import QUIET, TINY, batch_of, compounds, tiny_encoder

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN
from datamodules.store import CrystalStore, write_store
from foundation.checkpoint import find_members, load_checkpoint
from foundation.training.metrics import PropertyMetrics
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import ExponentialAverage, Optimization, parameter_groups, rate_at
from foundation.training.weighting import FixedWeights, UncertaintyWeights
from heads import ClassificationHead, ScalarHead


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(path / "checkpoints" / "last.ckpt", weights_only=True)
    return content


def differing(one: Any, two: Any, place: str = "") -> list[str]:
    """Where two nested contents are not equal to the last bit."""
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [f"{place}: keys"]
        return [found for key in one for found in differing(one[key], two[key], f"{place}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(two):
            return [f"{place}: length"]
        return [f for i, (a, b) in enumerate(zip(one, two, strict=True)) for f in differing(a, b, f"{place}/{i}")]
    same = torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    return [] if same else [place]


@pytest.mark.parametrize(
    "extra",
    [["--denoising.share", "0"], ["--data.temperature", "2", "--task_weights", "learned"]],
    ids=["plain", "all"],
)
def test_four_epochs_are_two_and_two_resumed(
    foundation: Command, tiny_store: Path, tmp_path: Path, extra: list[str]
) -> None:
    words = ["pretrain", "--data.store", tiny_store, *TINY, *QUIET, "--optimization.schedule_epochs", 4, *extra]
    words += ["--data.batch_size", 8, "--trainer.accumulate_grad_batches", 2]
    for name, epochs, more in (
        ("four", 4, []),
        ("two", 2, []),
        ("two", 4, ["--resume", tmp_path / "two" / "checkpoints" / "last.ckpt"]),
    ):
        answer = foundation(*words, "--trainer.max_epochs", epochs, "--out", tmp_path / name, *more)
        assert answer.code == 0, answer.err
        if epochs == 2:
            assert read(tmp_path / "two")["epoch"] == 1
    whole, resumed = read(tmp_path / "four"), read(tmp_path / "two")
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "current_model_state")
    assert set(parts) <= whole.keys()
    assert [found for part in parts for found in differing(whole[part], resumed[part], part)] == []
    assert differing(whole["averaging_state"], resumed["averaging_state"]) == []
    metrics = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("four", "two")]
    assert metrics[0]["test"] == metrics[1]["test"]


def test_the_same_seed_is_the_same_run(foundation: Command, tiny_store: Path, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        words = ["pretrain", "--data.store", tiny_store, *TINY, *QUIET, "--trainer.max_epochs", 1, "--seed", seed]
        assert foundation(*words, "--out", tmp_path / name).code == 0
    a, b, c = (read(tmp_path / name)["state_dict"] for name in "abc")
    assert differing(a, b) == []
    assert differing(a, c) != []


def test_scales_come_from_training_labels_only(tiny_run: Path, tiny_store: Path) -> None:
    data = CrystalDataModule(str(tiny_store))
    weights = load_checkpoint(find_members(str(tiny_run))[0]).weights
    data.choose(["formation_energy_per_atom", "band_gap"], NeighborRecipe())
    for name in data.names:
        rows, labels = data.training_labels(name)
        assert not set(rows) & {*data.split.val, *data.split.test}
        assert float(weights[f"heads.{name}.mean"]) == pytest.approx(float(labels.mean()), rel=1e-6)
        assert float(weights[f"heads.{name}.scale"]) == pytest.approx(float(labels.std(unbiased=False)), rel=1e-6)


def test_a_run_leaves_what_it_promises(tiny_run: Path) -> None:
    files = {path.relative_to(tiny_run).as_posix() for path in tiny_run.rglob("*") if path.is_file()}
    expected = {"config.yaml", "metrics.csv", "metrics.json", "plots/parity.png", "plots/learning_curves.png"}
    assert files >= expected | {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    with (tiny_run / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"val/band_gap/mae", "val/formation_energy_per_atom/mae", "val/loss", "epoch"} <= set(columns)
    test = json.loads((tiny_run / "metrics.json").read_text())["test"]["band_gap"]
    assert {"unit", "count", "mae", "rmse", "r2", "median_predictor_mae"} <= test.keys()


def test_validation_uses_the_averaged_weights_and_so_does_the_result(tiny_run: Path) -> None:
    content = read(tiny_run)
    raw = content["current_model_state"]
    assert differing({k: raw[k] for k in raw if k in content["state_dict"]}, content["state_dict"]) != []


def test_the_average_forgets_its_start() -> None:
    average = ExponentialAverage(0.99)
    update = average._kwargs["multi_avg_fn"]
    averaged, current = [torch.zeros(3)], [torch.ones(3)]
    for count in range(1, 200):
        update(averaged, current, torch.tensor(count))
    assert float(averaged[0].min()) > 0.999


@pytest.mark.parametrize("label", [1e38, float("inf")])
def test_a_loss_that_is_not_finite_names_the_crystals(foundation: Command, tmp_path: Path, label: float) -> None:
    crystals = compounds(30)
    labels = np.ones(30)
    labels[:] = np.linspace(1, 2, 30)
    labels[[3, 7, 11, 19]] = label
    write_store(tmp_path / "store", crystals, {"band_gap": labels}, [KNOWN["band_gap"]])
    words = ["pretrain", "--data.store", tmp_path / "store", *TINY, *QUIET, "--out", tmp_path / "run"]
    answer = foundation(*words, "--optimization.learning_rate", 1e30, "--trainer.max_epochs", 3)
    assert answer.code == 1
    last = answer.err.strip().splitlines()[-1]
    assert last.startswith("foundation: stopped: the loss of band_gap is not finite at step ")
    assert any(f" {crystal.id}," in last for crystal in crystals)


def test_metrics_are_in_physical_units_and_over_labels_that_exist() -> None:
    metrics = PropertyMetrics(ScalarHead("8x0e", KNOWN["band_gap"]))
    assert metrics.compute() == {}
    metrics.update(torch.tensor([1.0, 2.0, 5.0]), torch.tensor([2.0, torch.nan, 3.0]))
    metrics.update(torch.tensor([9.0]), torch.tensor([torch.nan]))
    found = metrics.compute()
    assert found["mae"] == pytest.approx(1.5)
    assert found["rmse"] == pytest.approx(2.5**0.5)
    metrics.reset()
    metrics.update(torch.tensor([1.0]), torch.tensor([2.0]))
    assert metrics.compute() == pytest.approx({"mae": 1.0, "rmse": 1.0})  # one label has no r2


def test_metrics_of_classes() -> None:
    metrics = PropertyMetrics(ClassificationHead("8x0e", KNOWN["is_metal"]))
    metrics.update(torch.tensor([0.9, 0.2, 0.6, 0.1]), torch.tensor([1.0, 0.0, 0.0, torch.nan]))
    found = metrics.compute()
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["auroc"] == pytest.approx(1.0)


def test_fixed_and_learned_weights() -> None:
    sums, counts = torch.tensor([2.0, 3.0]), torch.tensor([4, 5])
    assert float(FixedWeights(["a", "b"])(sums, counts)) == 5.0
    assert float(FixedWeights(["a", "b"], {"b": 10.0})(sums, counts)) == 32.0
    learned = UncertaintyWeights(["a", "b"])
    learned(sums, counts).backward()
    # The minimum of exp(-s) L + s n is where exp(s) is the mean loss.
    torch.testing.assert_close(learned.log_variance.grad, torch.tensor([2.0, 2.0]))
    with torch.no_grad():
        learned.log_variance.copy_(torch.log(sums / counts))
    learned.log_variance.grad = None
    learned(sums, counts).backward()
    torch.testing.assert_close(learned.log_variance.grad, torch.zeros(2), atol=1e-6, rtol=0)
    with pytest.raises(InputError, match="task_weights: no head for c; heads are a, b"):
        FixedWeights(["a", "b"], {"c": 1.0})


def test_the_schedule_rises_then_falls_to_zero() -> None:
    factor = rate_at(Optimization(warmup=0.1), 100)
    values = [factor(step) for step in range(101)]
    assert values[0] < values[5] < values[9]
    assert values[9:] == sorted(values[9:], reverse=True)
    assert values[100] == pytest.approx(0)
    constant = rate_at(Optimization(warmup=0.1, schedule="constant"), 100)
    assert [constant(step) for step in (9, 50, 1000)] == [1.0, 1.0, 1.0]


def test_biases_and_norms_do_not_decay_and_stages_have_their_rates() -> None:
    encoder = tiny_encoder()
    rates = dict.fromkeys(encoder.stages(), 0.0) | {"readout": 0.5}
    head = ScalarHead(str(encoder.irreps_out), KNOWN["band_gap"])
    groups = parameter_groups(encoder.stages(), rates, [head], Optimization(learning_rate=1.0, weight_decay=0.1))
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(0.5, 0.1), (0.5, 0), (1.0, 0.1), (1.0, 0)]
    assert all(p.dim() > 1 for group in groups if group["weight_decay"] for p in group["params"])


def test_frozen_stages_stay_in_evaluation_mode() -> None:
    encoder = tiny_encoder()
    rates = dict.fromkeys(encoder.stages(), 0.0) | {"readout": 1.0}
    module = MultiTaskModule(encoder, {"a": ScalarHead(str(encoder.irreps_out), KNOWN["band_gap"])}, rates=rates)
    module.train()
    assert [name for name, stage in encoder.stages().items() if stage.training] == ["readout"]
    batch = batch_of(compounds(2), encoder.recipe, [[1.0], [2.0]])
    module.losses(batch)[0].sum().backward()
    assert all(p.grad is None for p in encoder.embedding.parameters())


def test_a_property_without_a_training_label_is_refused(foundation: Command, tmp_path: Path) -> None:
    labels = {"band_gap": np.full(30, np.nan), "e_above_hull": np.ones(30)}
    write_store(tmp_path / "store", compounds(30), labels, [KNOWN[name] for name in labels])
    answer = foundation("pretrain", "--data.store", tmp_path / "store", *TINY, *QUIET, "--out", tmp_path / "run")
    assert answer.code == 2
    assert "property band_gap: no training crystal carries a label" in answer.err
    assert not (tmp_path / "run").exists()
    assert CrystalStore.open(tmp_path / "store")
