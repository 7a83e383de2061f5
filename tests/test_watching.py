"""What a run says of itself is true, and watching changes nothing."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command
from testing import QUIET, TINY, batch_of, compounds, tiny_encoder

from datamodules.batching import CrystalBatch, GraphArrays
from datamodules.datamodule import CrystalDataModule
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN
from foundation.largest_errors import COLUMNS, largest_errors
from foundation.training import trainer
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization, parameter_groups
from foundation.training.watching import property_gradient_norms, rates_of_parts
from foundation.training.weighting import FixedWeights, TaskWeighting, UncertaintyWeights
from heads import ScalarHead

NAMES = ["formation_energy_per_atom", "band_gap", "shear_modulus"]


def module_and_batch(weighting: TaskWeighting, **more: Any) -> tuple[MultiTaskModule, CrystalBatch]:
    """Three heads, and a batch in which the last property has no label."""
    encoder = tiny_encoder()
    torch.manual_seed(1)
    heads = {name: ScalarHead(str(encoder.irreps_out), KNOWN[name]) for name in NAMES}
    labels = np.random.default_rng(0).normal(size=(6, 3))
    labels[2:, 1], labels[:, 2] = np.nan, np.nan
    return MultiTaskModule(encoder, heads, weighting=weighting, **more), batch_of(compounds(6), encoder.recipe, labels)


def train(foundation: Command, store: Path, out: Path, *more: object) -> pd.DataFrame:
    words = [
        "pretrain",
        "--data.store",
        store,
        "--data.properties",
        "formation_energy_per_atom,band_gap",
        *TINY,
        *QUIET,
    ]
    answer = foundation(*words, "--trainer.max_epochs", 2, "--data.batch_size", 8, "--out", out, *more)
    assert answer.code == 0, answer.err
    return pd.read_csv(out / "metrics.csv")


def test_watching_changes_no_bit(
    foundation: Command, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ["--task_weights", "learned", "--data.temperature", 2]
    train(foundation, tiny_store, tmp_path / "watched", "--wandb", "offline", *more)
    monkeypatch.setattr(trainer, "watching", lambda sharded: [])
    history = train(foundation, tiny_store, tmp_path / "alone", *more)
    assert "gradient_norm" not in history
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "last.ckpt", weights_only=True) for name in ("watched", "alone")
    )
    for part in ("state_dict", "current_model_state"):
        assert one[part].keys() == two[part].keys()
        assert [name for name in one[part] if not torch.equal(one[part][name], two[part][name])] == []
    for moments, others in zip(*(c["optimizer_states"][0]["state"].values() for c in (one, two)), strict=True):
        assert all(torch.equal(moments[name], others[name]) for name in moments)


def test_a_history_without_weights_and_biases_has_it_too(foundation: Command, tiny_store: Path, tmp_path: Path) -> None:
    clip = ["--trainer.gradient_clip_val", "1e-6", "--trainer.log_every_n_steps", "4"]
    history = train(foundation, tiny_store, tmp_path / "run", *clip)
    steps = history.dropna(subset="gradient_norm")
    assert steps["step"].tolist() == [0, 3, 7, 11]
    assert (steps["gradient_norm"] > 1e-2).all(), "the norm after clipping"
    assert steps["lr/readout"].is_monotonic_decreasing, "not the rates of their steps"
    assert steps["lr/readout"].iloc[-1] == pytest.approx(steps["lr/heads"].iloc[-1])
    # Once: the second epoch begins within a hundred steps.
    assert history["train/band_gap/gradient_norm"].notna().sum() == 1
    epochs = history.dropna(subset="speed/crystals_per_second")
    assert epochs["epoch"].tolist() == [0, 1]
    assert epochs["speed/data_wait"].between(0, 1).all()
    assert epochs["memory/peak_GiB"].between(0.1, 100).all()


def test_an_epoch_tells_of_itself_before_its_end(foundation: Command, tiny_store: Path, tmp_path: Path) -> None:
    """Here what is told every ten steps is told at the end of an epoch as well, so the two can be compared."""
    often = ["--trainer.log_every_n_steps", 1, "--data.batch_size", 5]
    history = train(foundation, tiny_store, tmp_path / "run", *often)
    recent = history.dropna(subset="speed/recent_crystals_per_second")
    epochs = history.dropna(subset="speed/crystals_per_second")
    assert recent["step"].tolist() == epochs["step"].tolist() == [9, 19]
    for name in ("formation_energy_per_atom", "band_gap"):
        expected = epochs[f"train/{name}/loss"].tolist()
        assert recent[f"train/{name}/recent_loss"].tolist() == pytest.approx(expected, rel=1e-5)
    assert recent["speed/recent_data_wait"].between(0, 1).all()
    assert recent["memory/peak_GiB"].between(0.1, 100).all()
    assert (recent["speed/recent_crystals_per_second"] > 0).all()
    history = train(foundation, tiny_store, tmp_path / "single", *often, "--data.properties", "band_gap")
    assert history["train/band_gap/recent_loss"].notna().any()
    more = ["--trainer.log_every_n_steps", 1, "--data.batch_size", 2, "--trainer.accumulate_grad_batches", 2]
    history = train(foundation, tiny_store, tmp_path / "accumulated", *more)
    assert history.dropna(subset="speed/recent_data_wait")["step"].tolist() == [9, 19]


def test_waiting_for_data_is_seen(
    foundation: Command, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = GraphArrays.gather

    def slowly(*arguments: Any, **named: Any) -> CrystalBatch:
        time.sleep(0.5)
        return gather(*arguments, **named)

    monkeypatch.setattr(GraphArrays, "gather", slowly)
    history = train(foundation, tiny_store, tmp_path / "run", "--trainer.limit_train_batches", 4)
    last = history.dropna(subset="speed/data_wait").iloc[-1]
    assert last["speed/data_wait"] > 0.5
    assert 0 < last["speed/crystals_per_second"] < 24  # at most 8 crystals a batch, four batches, three waits


@pytest.mark.parametrize("weighting", [FixedWeights(NAMES, {"band_gap": 3.0}), UncertaintyWeights(NAMES)])
def test_the_pull_of_a_property_is_the_gradient_of_its_part_of_the_loss(weighting: TaskWeighting) -> None:
    module, batch = module_and_batch(weighting)
    random_state = torch.get_rng_state()
    norms = property_gradient_norms(module, batch)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in module.parameters())
    assert list(norms) == NAMES[:2]  # the last has no label here
    features = module.encoder(batch).detach().requires_grad_()
    labels = int((~torch.isnan(batch.labels)).sum())
    for index, name in enumerate(NAMES[:2]):
        alone = batch.clone()
        alone.labels = torch.full_like(batch.labels, torch.nan)
        alone.labels[:, index] = batch.labels[:, index]
        sums, _, _ = module.losses_of_heads(features, alone)
        weight = {"band_gap": 3.0}.get(name, 1.0) if isinstance(weighting, FixedWeights) else 1.0
        (gradient,) = torch.autograd.grad(weight * sums.sum() / labels, features)
        assert norms[name] == pytest.approx(float(gradient.norm()), rel=1e-5)


def test_rates_name_the_parts_and_what_stands_still() -> None:
    stages = tiny_encoder().stages()
    rates = {name: 0.0 if name == "embedding" else 0.5 for name in stages}
    module, _ = module_and_batch(UncertaintyWeights(NAMES), rates=rates)
    groups = parameter_groups(
        module.encoder.stages(), rates, [module.heads, module.weighting], Optimization(learning_rate=0.1)
    )
    found = rates_of_parts(module, torch.optim.SGD(groups))
    assert found["lr/embedding"] == 0
    assert {found[f"lr/{name}"] for name in stages if name != "embedding"} == {0.05}
    assert found["lr/heads"] == found["lr/task_weights"] == 0.1
    sizes = {name: sum(p.numel() for p in stage.parameters()) for name, stage in stages.items()}
    assert found["frozen_share"] == pytest.approx(sizes["embedding"] / sum(sizes.values()))


def test_the_largest_errors_are_those_of_the_right_crystals(tiny_store: Path, tiny_run: Path) -> None:
    data = CrystalDataModule(str(tiny_store))
    data.choose(["band_gap", "formation_energy_per_atom"], NeighborRecipe())
    rows = data.split.rows("train")
    target = data.labels[torch.from_numpy(rows), 0].double().numpy()
    known = ~np.isnan(target)
    assert 0 < known.sum() < len(rows)
    predicted = target[known] + np.linspace(-1, 0.5, known.sum())
    errors = np.full((len(rows), 3), np.nan)
    errors[known] = np.stack([target[known], predicted, predicted - target[known]], axis=1)
    table = largest_errors({"band_gap": errors}, data, "train", count=3)
    assert tuple(table.columns) == COLUMNS
    assert table["id"].tolist() == [data.store.ids[row] for row in rows[known][:3]]
    assert table["formula"].tolist() == [data.store.formulas[row] for row in rows[known][:3]]
    assert table["error"].tolist() == pytest.approx(np.linspace(-1, 0.5, known.sum())[:3].tolist())
    assert set(table["unit"]) == {"eV"}
    with (tiny_run / "errors.csv").open() as file:
        written = list(csv.DictReader(file))
    assert {row["property"] for row in written} == {"formation_energy_per_atom", "band_gap"}
    assert {row["part"] for row in written} == {"test"}
