"""Which encoder suits a property: the features, the scores, and the command that orders checkpoints by them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import Command
from e3nn import o3
from scipy.linalg import helmert
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from sklearn.linear_model import Ridge
from testing import compounds, make_store, random_crystal, supercell, tiny_encoder

from datamodules.batching import build_graphs
from datamodules.crystals import Crystal
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.properties import KNOWN, Property
from datamodules.store import CrystalStore, write_store
from foundation.checkpoint import find_members, load_checkpoint
from foundation.features import crystal_features
from foundation.inference import EDGES_PER_BATCH
from foundation.transferability import (
    agreement,
    check_labels,
    leave_one_out,
    log_evidence,
    median_mae,
    standardized,
    suitability,
)

Array = npt.NDArray[np.float64]
MODULUS = KNOWN["shear_modulus"]


def features_of(crystals: list[Crystal], rows: list[int] | None = None) -> Array:
    encoder = tiny_encoder()
    graphs = build_graphs(crystals, encoder.recipe)
    return crystal_features(encoder, graphs, np.array(range(len(crystals)) if rows is None else rows, dtype=np.int64))


def problem(labels: int, width: int, seed: int = 0) -> tuple[Array, Array]:
    """Standardized features and a target that they explain in part."""
    random = np.random.default_rng(seed)
    features = standardized(random.normal(size=(labels, width)) * random.uniform(0.1, 10, width))
    target = features @ random.normal(size=width) + 0.3 * random.normal(size=labels)
    return features, (target - target.mean()) / target.std()


# Features


def test_features_are_two_per_scalar_and_finite() -> None:
    features = features_of(compounds(12))
    assert features.shape == (12, 16)
    assert np.isfinite(features).all()
    assert (features.std(axis=0) > 0).all()


def test_features_do_not_depend_on_orientation_or_cell() -> None:
    crystal = random_crystal()
    rotation = o3.rand_matrix(dtype=torch.float64).numpy()
    turned = replace(crystal, lattice=crystal.lattice @ rotation.T)
    features = features_of([crystal, turned, supercell(crystal), random_crystal(seed=1)])
    assert features[1:3] == pytest.approx(features[[0, 0]], abs=2e-5)
    assert np.abs(features[3] - features[0]).max() > 1e-2


def test_features_follow_the_rows_asked_for() -> None:
    crystals = [random_crystal(size, seed=size) for size in (2, 9, 5, 7)]
    every = features_of(crystals)
    assert features_of(crystals, [2, 0, 1]) == pytest.approx(every[[2, 0, 1]], abs=1e-5)
    assert features_of(crystals, []).shape == (0, 16)


def test_features_are_cut_into_batches_of_bounded_size(monkeypatch: pytest.MonkeyPatch) -> None:
    crystals = [random_crystal(size, seed=size) for size in (2, 9, 5, 7)]
    together = features_of(crystals)
    monkeypatch.setitem(EDGES_PER_BATCH, "cpu", 1)
    assert features_of(crystals) == pytest.approx(together, abs=1e-5)


# Scores


@pytest.mark.parametrize(("labels", "width"), [(40, 5), (12, 60)])
def test_log_evidence_is_the_maximum_of_the_density_of_the_labels(labels: int, width: int) -> None:
    features, target = problem(labels, width)
    contrasts = helmert(labels)  # of the labels, a constant projected out
    kernel, goal = contrasts @ features @ features.T @ contrasts.T, contrasts @ target

    def negative(logs: Array) -> float:
        weights, noise = np.exp(logs)
        cov = weights * kernel + noise * np.eye(labels - 1)
        return -float(multivariate_normal(cov=cov).logpdf(goal))

    best = min(minimize(negative, start, method="Nelder-Mead").fun for start in ([0, 0], [0, -3], [-3, 0]))
    assert log_evidence(features, target) == pytest.approx(-best / (labels - 1), abs=1e-3)


def test_noise_scores_like_the_mean_alone_however_wide() -> None:
    random = np.random.default_rng(1)
    target = problem(20, 5)[1]
    alone = -0.5 * (1 + np.log(2 * np.pi * 20 / 19))
    for width in (5, 500):
        score = log_evidence(standardized(random.normal(size=(20, width))), target)
        assert alone - 0.01 < score < alone + 0.12


def test_the_same_features_twice_are_worth_no_more() -> None:
    features, target = problem(15, 30)
    twice = standardized(np.hstack([features, features]))
    assert log_evidence(twice, target) == pytest.approx(log_evidence(features, target), abs=1e-4)


def test_constant_features_tell_nothing() -> None:
    features, _ = problem(10, 4)
    noise = 3.0 + 1e-7 * np.random.default_rng(1).normal(size=(10, 3))
    assert np.array_equal(standardized(np.hstack([features, noise]))[:, 4:], np.zeros((10, 3)))
    found = suitability(np.ones((10, 4)), np.arange(10.0) + 1, MODULUS)
    assert np.isfinite(found.score)
    assert found.loo_mae == pytest.approx(np.mean(np.abs(np.arange(10) - 4.5)) * 10 / 9)


@pytest.mark.parametrize("width", [3, 40])
def test_leave_one_out_is_what_refitting_without_each_label_gives(width: int) -> None:
    features, target = problem(14, width)
    target = 100 + 7 * target
    found = leave_one_out(features, target)

    def refitted(penalty: float) -> Array:
        keep = ~np.eye(len(target), dtype=bool)
        models = [Ridge(penalty).fit(features[rows], target[rows]) for rows in keep]
        return np.array([float(model.predict(row[None])[0]) for model, row in zip(models, features, strict=True)])

    errors = {penalty: np.abs(refitted(penalty) - target).mean() for penalty in np.logspace(-4, 4, 25)}
    best = min(errors, key=lambda penalty: errors[penalty])
    assert found == pytest.approx(refitted(best), rel=1e-6)


@pytest.mark.parametrize("number", [3, 4, 11, 12])
def test_median_of_the_others(number: int) -> None:
    labels = np.random.default_rng(number).normal(size=number)
    others = [np.median(np.delete(labels, index)) for index in range(number)]
    assert median_mae(labels) == pytest.approx(np.abs(labels - others).mean())


def test_a_property_over_decades_is_judged_by_its_logarithm() -> None:
    features, target = problem(30, 4)
    plain = suitability(features, target, Property("x"))
    log = suitability(features, 10.0**target, Property("x", log=True))
    assert log.score == pytest.approx(plain.score)
    predicted = 10.0 ** leave_one_out(standardized(features), target)
    assert log.loo_mae == pytest.approx(np.abs(predicted - 10.0**target).mean())


def test_scores_do_not_depend_on_the_order_of_labels_or_their_unit() -> None:
    features, target = problem(25, 60)
    order = np.random.default_rng(0).permutation(25)
    one, other = suitability(features, target, MODULUS), suitability(features[order], 1000 * target[order], MODULUS)
    assert other.score == pytest.approx(one.score, abs=1e-4)
    assert other.loo_mae == pytest.approx(1000 * one.loo_mae)


@pytest.mark.parametrize(
    ("labels", "log", "told"),
    [([1.0, 2.0], False, "2 training labels"), ([2.0] * 5, False, "all 5"), ([0.0, 1.0, 2.0], True, "positive")],
)
def test_labels_that_judge_nothing_are_refused(labels: list[float], log: bool, told: str) -> None:
    with pytest.raises(InputError, match=told):
        check_labels(np.array(labels), Property("x", log=log))


def test_agreement_is_one_where_the_better_score_has_the_lower_error() -> None:
    scores = {"a": -1.0, "b": -2.0, "c": -3.0, "unknown": 0.0}
    assert agreement(scores, {"a": 0.1, "b": 0.2, "c": 0.3}) == pytest.approx(1.0)
    assert agreement(scores, {"a": 0.3, "b": 0.2, "c": 0.1}) == pytest.approx(-1.0)
    assert agreement(scores, {"a": 0.2, "b": 0.1, "c": 0.3}) == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="true errors of 1"):
        agreement(scores, {"a": 0.1, "z": 0.2})


# The command


def written(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.fixture
def carried(tiny_run: Path, tmp_path: Path) -> Path:
    """A store whose property hangs on what the pretrained encoder tells apart most."""
    crystals = compounds(60, seed=5)
    encoder = load_checkpoint(find_members(str(tiny_run))[0]).build().encoder
    features = crystal_features(encoder, build_graphs(crystals, encoder.recipe), np.arange(60))
    labels = np.linalg.svd(standardized(features[:, :8]), full_matrices=False)[0][:, :6].sum(axis=1)
    write_store(tmp_path / "carried", crystals, {"made": 5 + labels}, [Property("made", "GPa")])
    return tmp_path / "carried"


def test_an_informative_encoder_outranks_fresh_weights(
    foundation: Command, carried: Path, tiny_run: Path, tmp_path: Path
) -> None:
    answer = foundation(
        "rank", tiny_run, "--data.store", carried, "--property", "made", "--out", tmp_path / "rank.json"
    )
    assert answer.code == 0, answer.err
    for text in ("LOO MAE (GPa)", "fresh weights", "seconds", "median predictor"):
        assert text in answer.out
    content = written(tmp_path / "rank.json")
    first, second = content["ranking"]
    assert (first["rank"], first["checkpoint"]) == (1, str(tiny_run))
    assert (second["rank"], second["checkpoint"]) == (2, "fresh weights")
    assert first["score"] > second["score"] + 0.3
    assert first["loo_mae"] < 0.5 * second["loo_mae"]
    assert first["loo_mae"] < 0.5 * content["median_predictor_mae"]
    assert 50 <= first["labels"] < 60


def test_labels_of_test_crystals_change_nothing(foundation: Command, tiny_run: Path, tmp_path: Path) -> None:
    store = make_store(tmp_path / "before", compounds())
    data = CrystalDataModule(str(store))
    data.choose(["shear_modulus"], tiny_encoder().recipe)
    table = CrystalStore.open(store)
    labels = table.labels(["shear_modulus"])[:, 0]
    found = []
    for part in (None, "test", "train"):
        changed = labels.copy()
        if part:
            changed[data.split.rows(part)] *= np.linspace(1, 3, len(data.split.rows(part)))
        folder = tmp_path / f"store-{part}"
        write_store(folder, [table.crystal(row) for row in range(len(table))], {"shear_modulus": changed}, [MODULUS])
        words = ["--data.store", folder, "--property", "shear_modulus", "--out", tmp_path / "rank.json"]
        assert foundation("rank", tiny_run, *words).code == 0
        ranking = written(tmp_path / "rank.json")["ranking"]
        found.append({row["checkpoint"]: (row["score"], row["loo_mae"]) for row in ranking})
    assert found[0] == found[1]
    assert all(found[0][name] != found[2][name] for name in found[0])


def test_true_errors_are_compared(foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    words = ["rank", tiny_run, "--data.store", tiny_store, "--property", "shear_modulus", "--train-size", 30]
    out = tmp_path / "rank.json"
    assert foundation(*words, "--out", out).code == 0
    first, second = (row["checkpoint"] for row in written(out)["ranking"])
    assert written(out)["ranking"][0]["labels"] == 30
    for errors, tau in (({first: 1.0, second: 2.0}, 1.0), ({first: 2.0, second: 1.0}, -1.0)):
        (tmp_path / "truth.json").write_text(json.dumps(errors))
        answer = foundation(*words, "--out", out, "--truth", tmp_path / "truth.json")
        assert answer.code == 0, answer.err
        assert f"Kendall's tau with the true errors: {tau:.4g} by score" in answer.out
        assert written(out)["tau_score"] == pytest.approx(tau)


def test_mistakes_are_told_in_one_line(
    foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "no.ckpt").write_text("not a checkpoint")
    (tmp_path / "truth.json").write_text("[1]")
    same = {"shear_modulus": np.full(20, 7.0)}
    write_store(tmp_path / "same", compounds(20), same, [MODULUS])
    before = sorted(tmp_path.rglob("*"))
    good: list[object] = [tiny_run, "--data.store", tiny_store, "--property", "shear_modulus", "--out", "x.json"]
    mistakes: list[tuple[list[object], str]] = [
        (["no.ckpt", *good[1:]], "no.ckpt"),
        (["nowhere", *good[1:]], "nowhere"),
        ([*good, "--property", "hardness"], "no property 'hardness'"),
        ([*good, "--data.store", "nowhere"], "nowhere"),
        ([*good, "--train-size", 2], "2 training labels"),
        ([*good, "--data.store", "same"], "all 18 training labels are 7"),
        ([*good, "--truth", "truth.json"], "truth.json"),
        ([*good, "--truth", "missing.json"], "missing.json"),
        ([*good, "--out", "same"], "is a folder"),
        ([*good, "--typo"], "--typo"),
    ]
    for words, told in mistakes:
        answer = foundation("rank", *words)
        assert answer.code == 2, answer.err
        assert answer.err.count("\n") == 1
        assert told in answer.err
    after = [path for path in sorted(tmp_path.rglob("*")) if not {"graphs", "labels"} & set(path.parts)]
    assert after == before


def test_a_checkpoint_that_knows_the_quantity_is_named(foundation: Command, tiny_run: Path, tiny_store: Path) -> None:
    told = foundation("rank", tiny_run, "--data.store", tiny_store, "--property", "band_gap")
    assert told.code == 0, told.err
    assert "was trained on this quantity (band_gap)" in told.err
    other = foundation("rank", tiny_run, "--data.store", tiny_store, "--property", "shear_modulus")
    assert "was trained on this quantity" not in other.err
