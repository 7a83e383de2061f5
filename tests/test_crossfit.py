"""Cross-validated ensembles: weights from labels left out, and a blended head that a checkpoint can hold."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import Command
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from testing import compounds, make_store, other_cell, supercell, tiny_encoder

from datamodules.batching import build_graphs
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.properties import KNOWN
from foundation.auto.folds import Folds
from foundation.blending import GRID, weigh
from foundation.checkpoint import find_members, load_checkpoint
from foundation.classical import support_vectors
from foundation.classical.blended import Weights, blended
from foundation.classical.companions import fit_companions
from foundation.classical.descriptors import describe
from foundation.classical.forest import NUM_TREES, SETTINGS, fit_forest
from foundation.classical.support_vectors import fit_support_vectors
from foundation.inference import Ensemble, Values
from foundation.training.spec import HeadSpec

NAME = "formation_energy_per_atom"


def said_by(model: torch.nn.Module, features: pd.DataFrame) -> Values:
    """[B, D] descriptors -> [B]."""
    said: Values = model(torch.tensor(features.to_numpy())).numpy()
    return said


def test_the_tensors_predict_as_the_forest_they_were_made_from(folds: Folds) -> None:
    features = describe(folds.data, folds.rows)
    forest = fit_forest(features[:30], folds.labels[:30], seed=3)
    assert len(forest.feature) == NUM_TREES
    model = ExtraTreesRegressor(random_state=3, **SETTINGS).fit(features[:30], folds.labels[:30])
    np.testing.assert_allclose(said_by(forest, features), model.predict(features), rtol=1e-10)


@pytest.mark.parametrize("most", [1000, 20])
def test_they_predict_as_the_support_vectors_they_were_made_from(
    folds: Folds, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(support_vectors, "MOST", most)
    features = describe(folds.data, folds.rows)
    goal = np.log10(folds.labels - folds.labels.min() + 1)
    made = fit_support_vectors(features[:30], goal[:30], seed=3)
    chosen = np.sort(np.random.default_rng(3).permutation(30)[:most])
    scaler = StandardScaler().fit(features.to_numpy()[chosen])
    goal = goal[chosen]
    model = SVR(gamma=0.1 / features.shape[1], **support_vectors.SETTINGS)
    model.fit(scaler.transform(features.to_numpy()[chosen]), (goal - np.median(goal)) / goal.std())
    expected = model.predict(scaler.transform(features.to_numpy())) * goal.std() + np.median(goal)
    np.testing.assert_allclose(said_by(made, features), expected, rtol=1e-8, atol=1e-10)


def test_companions_learn_the_logarithm_where_the_property_says_so(folds: Folds) -> None:
    features, labels = describe(folds.data, folds.rows), folds.labels - folds.labels.min() + 1
    made = fit_companions(features, labels, replace(KNOWN[NAME], log=True), seed=3)
    goal = np.log10(labels)
    expected = [said_by(fit(features, goal, seed=3), features) for fit in (fit_forest, fit_support_vectors)]
    said = made.physical(features, replace(KNOWN[NAME], log=True))
    np.testing.assert_allclose(np.log10(said), [*expected, np.full(len(labels), np.log10(np.median(labels)))])


def test_labels_that_are_all_the_same_are_predicted(folds: Folds) -> None:
    features = describe(folds.data, folds.rows)
    made = fit_companions(features[:10], np.full(10, 3.0), KNOWN[NAME])
    np.testing.assert_allclose(made.physical(features, KNOWN[NAME]), 3.0)


def test_weights_add_up_and_the_best_one_says_most(folds: Folds) -> None:
    assert all(sum(weights) == pytest.approx(1) and min(weights) >= 0 for weights in GRID)
    assert len(set(GRID)) == 286
    random = np.random.default_rng(0)
    noise = random.normal(size=(2, len(folds.rows)))
    exact, poor = folds.labels, folds.labels + 100 * noise[0]

    def weighed(*three: Values) -> tuple[Weights, dict[str, float]]:
        return weigh(folds, np.stack([*three, folds.medians()]), KNOWN[NAME])

    weights, errors = weighed(exact, poor, poor)
    assert weights == Weights(1.0, 0.0, 0.0, 0.0)
    assert errors["blended"] == errors["encoder"] == 0
    assert weighed(poor, exact, poor)[0] == Weights(0.0, 1.0, 0.0, 0.0)
    assert weighed(poor, poor, exact)[0] == Weights(0.0, 0.0, 1.0, 0.0)
    assert weighed(poor, poor, poor)[0].median > 0.8
    size = 0.3 * folds.labels.std()
    both, errors = weighed(exact + size * noise[0], poor, exact + size * noise[1])
    assert 0.2 < both.encoder < 0.8
    assert errors["blended"] < min(errors["encoder"], errors["support_vectors"])


def test_the_error_told_is_of_weights_chosen_without_the_fold(folds: Folds) -> None:
    noise = np.random.default_rng(1).normal(size=(3, len(folds.rows))) * 2 * folds.labels.std()
    said = np.stack([*(folds.labels + noise), folds.medians()])
    weights, errors = weigh(folds, said, KNOWN[NAME])
    assert errors["blended"] >= np.abs(np.array(weights) @ said - folds.labels).mean()


@pytest.mark.parametrize("log", [False, True])
def test_a_blended_head_says_what_its_parts_say(folds: Folds, log: bool) -> None:
    property = replace(KNOWN["shear_modulus"], log=log)
    labels = 10.0 ** np.linspace(0, 2, len(folds.rows))
    features = describe(folds.data, folds.rows)
    companions = fit_companions(features, labels, property)
    encoder = tiny_encoder()
    spec = HeadSpec("heads.ScalarHead", {}, property)
    head = spec.build(str(encoder.irreps_out))
    batch = folds.data.graphs.gather(folds.rows)
    head.fit_scaler(torch.from_numpy(labels), batch)
    with torch.no_grad():
        scaled = head(encoder(batch), batch)
        own = head.predict(scaled, batch).double()
        for weights in (*(Weights(*alone) for alone in np.eye(4).tolist()), Weights(0.4, 0.3, 0.2, 0.1)):
            mixed, made = blended(head, spec, companions, weights, encoder.recipe)
            got = mixed.predict(mixed(encoder(batch), batch), batch).double()
            parts = torch.cat([own[None], torch.from_numpy(companions.physical(features, property))])
            shares = torch.tensor(weights, dtype=torch.float64)
            expected = 10 ** (shares @ parts.log10()) if log else shares @ parts
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
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
    answer = foundation("export", out / "fold0" / "checkpoints" / "last.ckpt", "--out", tmp_path / "package")
    assert answer.code == 0, answer.err
    assert "of 1 model;" in answer.out


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
