"""Cross-validated ensembles: weights from labels left out, and a blended head that a checkpoint can hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from sklearn.ensemble import ExtraTreesRegressor
from testing import compounds, make_store, other_cell, supercell, tiny_encoder

from datamodules.batching import build_graphs
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.properties import KNOWN
from foundation.auto.folds import Folds
from foundation.blending import GRID, weigh
from foundation.checkpoint import find_members, load_checkpoint
from foundation.classical.blended import Weights, blended
from foundation.classical.descriptors import describe
from foundation.classical.forest import NUM_TREES, SETTINGS, fit_forest
from foundation.inference import Ensemble
from foundation.training.spec import HeadSpec

NAME = "formation_energy_per_atom"


def test_the_arrays_predict_as_the_forest_they_were_made_from(folds: Folds) -> None:
    features = describe(folds.data, folds.rows)
    forest = fit_forest(features[:30], folds.labels[:30], KNOWN[NAME], seed=3)
    assert len(forest.feature) == NUM_TREES
    model = ExtraTreesRegressor(random_state=3, **SETTINGS).fit(features[:30], folds.labels[:30])
    np.testing.assert_allclose(forest.predict(features), model.predict(features), rtol=1e-10)


def test_weights_add_up_and_the_best_one_says_most(folds: Folds) -> None:
    assert all(sum(weights) == pytest.approx(1) and min(weights) >= 0 for weights in GRID)
    assert len(set(GRID)) == 66
    random = np.random.default_rng(0)
    noise = random.normal(size=(2, len(folds.rows)))
    exact, poor = folds.labels, folds.labels + 100 * noise[0]
    weights, errors = weigh(folds, exact, poor, KNOWN[NAME])
    assert weights == Weights(1.0, 0.0, 0.0)
    assert errors["blended"] == errors["encoder"] == 0
    assert weigh(folds, poor, exact, KNOWN[NAME])[0] == Weights(0.0, 1.0, 0.0)
    assert weigh(folds, poor, poor, KNOWN[NAME])[0].median > 0.8
    size = 0.3 * folds.labels.std()
    both, errors = weigh(folds, exact + size * noise[0], exact + size * noise[1], KNOWN[NAME])
    assert 0.2 < both.encoder < 0.8
    assert errors["blended"] < min(errors["encoder"], errors["forest"])


def test_the_error_told_is_of_weights_chosen_without_the_fold(folds: Folds) -> None:
    noise = np.random.default_rng(1).normal(size=(2, len(folds.rows))) * 2 * folds.labels.std()
    weights, errors = weigh(folds, folds.labels + noise[0], folds.labels + noise[1], KNOWN[NAME])
    three = np.stack([folds.labels + noise[0], folds.labels + noise[1], folds.medians()])
    assert errors["blended"] >= np.abs(np.array(weights) @ three - folds.labels).mean()


@pytest.mark.parametrize("log", [False, True])
def test_a_blended_head_says_what_its_parts_say(folds: Folds, log: bool) -> None:
    property = replace(KNOWN["shear_modulus"], log=log)
    labels = 10.0 ** np.linspace(0, 2, len(folds.rows))
    features = describe(folds.data, folds.rows)
    forest = fit_forest(features, labels, property)
    encoder = tiny_encoder()
    spec = HeadSpec("heads.ScalarHead", {}, property)
    head = spec.build(str(encoder.irreps_out))
    batch = folds.data.graphs.gather(folds.rows)
    head.fit_scaler(torch.from_numpy(labels), batch)
    with torch.no_grad():
        scaled = head(encoder(batch), batch)
        own = head.predict(scaled, batch).double()
        for weights in (Weights(1, 0, 0), Weights(0, 1, 0), Weights(0, 0, 1), Weights(0.5, 0.3, 0.2)):
            mixed, made = blended(head, spec, forest, weights, 7.0, encoder.recipe)
            got = mixed.predict(mixed(encoder(batch), batch), batch).double()
            parts = torch.stack([own, torch.from_numpy(forest.predict(features)), torch.full_like(own, 7.0)])
            if log:
                parts[0], parts[2] = parts[0].log10(), parts[2].log10()
            expected = torch.tensor(weights, dtype=torch.float64) @ parts
            torch.testing.assert_close(got, 10**expected if log else expected, rtol=1e-4, atol=1e-4)
    again = made.build(str(encoder.irreps_out))
    again.load_state_dict(mixed.state_dict())
    assert torch.equal(again.predict(scaled, batch), mixed.predict(scaled, batch))
    with pytest.raises(InputError, match="trains no further"):
        again.fit_scaler(torch.ones(3), batch)


def folds_run(foundation: Command, run: Path, store: Path, out: Path, *more: Any) -> Any:
    words: list[Any] = ["adapt", "--pretrained", run, "--data.store", store, "--property", "shear_modulus"]
    words += ["--strategy", "linear_probe", "--folds", "3", "--trainer.max_epochs", "2", "--compile", "false"]
    return foundation(*words, "--out", out, "--wandb", "off", "--trainer.accelerator", "cpu", *more)


def test_the_command_and_what_it_leaves(foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    answer = folds_run(foundation, tiny_run, tiny_store, out)
    assert answer.code == 0, answer.err
    assert "folds: MAE on labels left out, GPa: encoder " in answer.err
    metrics = json.loads((out / "metrics.json").read_text())
    assert sum(metrics["crossfit"]["weights"].values()) == pytest.approx(1)
    members = find_members(str(out))
    assert [path.parent.parent.name for path in members] == ["fold0", "fold1", "fold2"]
    models = [load_checkpoint(path).build() for path in members]
    weights = [dict(model.named_heads())["shear_modulus"].weights for model in models]
    assert torch.allclose(weights[0], torch.tensor(list(metrics["crossfit"]["weights"].values())).double())
    # What the checkpoints predict is what was evaluated.
    data = CrystalDataModule(str(tiny_store))
    data.choose(["shear_modulus"], models[0].encoder.recipe)
    rows = data.split.test
    predicted = Ensemble(models).predict_graphs(data.graphs, rows)["shear_modulus"].mean(axis=1)
    labels = data.labels[torch.from_numpy(rows), 0].numpy()
    known = ~np.isnan(labels)
    error = np.abs(predicted - labels)[known].mean()
    assert error == pytest.approx(metrics["test"]["shear_modulus"]["mae"], rel=1e-4)
    assert foundation("predict", out, tiny_store, "--out", tmp_path / "p.csv").code == 0
    assert foundation("evaluate", out, "--data.store", tiny_store, "--out", tmp_path / "e").code == 0
    refused = foundation("export", out / "fold0" / "checkpoints" / "last.ckpt", "--out", tmp_path / "package")
    assert refused.code == 2
    assert "forest" in refused.err


def test_a_blended_model_does_not_depend_on_the_cell(
    foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    assert folds_run(foundation, tiny_run, tiny_store, tmp_path / "run").code == 0
    model = load_checkpoint(find_members(str(tmp_path / "run"))[0]).build()
    crystal = compounds(1)[0]
    graphs = build_graphs([crystal, supercell(crystal), other_cell(crystal)], model.encoder.recipe)
    with torch.no_grad():
        one, two, three = model(graphs.gather(range(3)))["shear_modulus"].tolist()
    assert two == pytest.approx(one, rel=1e-4)
    assert three == pytest.approx(one, rel=1e-4)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--folds", "1"], "--folds 1: give at least 2"),
        (["--folds", "60"], "are fewer than 60 folds"),
        (["--seeds", "2"], "--folds: does not go together with"),
        (["--strategy", "auto"], "--folds: does not go together with"),
    ],
)
def test_bad_input(
    words: list[str], said: str, foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    answer = folds_run(foundation, tiny_run, tiny_store, tmp_path / "run", *words)
    assert answer.code == 2, answer.err
    assert said in answer.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_a_class_is_refused(foundation: Command, tiny_run: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "store", compounds(30))
    words = ("--property", "is_metal", "--head.class_path", "heads.ClassificationHead")
    answer = folds_run(foundation, tiny_run, store, tmp_path / "run", *words)
    assert answer.code == 2, answer.err
    assert "is not one scalar per crystal" in answer.err
