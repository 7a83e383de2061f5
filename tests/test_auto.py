"""The search: it finds what is better, stays in its budget, and claims nothing that it cannot show."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from testing import QUIET, TINY, compounds, make_store, tiny_encoder

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.properties import KNOWN, Property
from datamodules.store import write_store
from foundation.auto.candidates import SCRATCH, AutoSettings, Candidate, Setting
from foundation.auto.folds import Folds, cut
from foundation.auto.opponents import of_shapes
from foundation.auto.search import search
from foundation.auto.verdict import decide
from foundation.blending import nested_errors
from foundation.inference import Values
from foundation.training.optimization import Optimization
from foundation.training.spec import HeadSpec

NAME = "formation_energy_per_atom"
SETTINGS = AutoSettings(candidates={"full": [1e-2, 1e-3, 1e-4], "last_blocks": [1e-3], SCRATCH: [1e-3]}, epochs=20)


def poor(folds: Folds) -> Values:
    """What companions would say that have learned nothing, but for the median."""
    nothing = np.full(len(folds.labels), 1e3)
    return np.stack([nothing, nothing, folds.medians()])


class FakeSetting(Setting):
    """Candidates whose error is known beforehand; a source of no name stands for all."""

    def __init__(self, noise: Callable[[Candidate, int], float], seconds: float = 0.0) -> None:
        head = HeadSpec("heads.ScalarHead", {}, KNOWN[NAME])
        super().__init__(head, {}, Optimization(), {"one": None}, {})  # type: ignore[dict-item]
        object.__setattr__(self, "noise", noise)
        object.__setattr__(self, "seconds", seconds)
        object.__setattr__(self, "asked", [])

    def predict(self, candidate: Candidate, data: CrystalDataModule, epochs: int, seed: int) -> Values:
        self.asked.append((candidate, epochs, len(data.split.train)))  # type: ignore[attr-defined]
        time.sleep(self.seconds * epochs * len(data.split.train))  # type: ignore[attr-defined]
        truth = data.labels[torch.from_numpy(data.split.test), 0].double().numpy()
        random = np.random.default_rng([seed, int(1e6 * candidate.learning_rate), len(candidate.strategy)])
        size = self.noise(candidate, epochs)  # type: ignore[attr-defined]
        return np.asarray(truth + size * random.normal(size=len(truth)))


def test_folds_share_no_formula_and_hold_every_label(folds: Folds) -> None:
    assert len(folds.rows) == len(set(folds.rows.tolist()))
    assert not set(folds.rows.tolist()) & set(folds.data.split.test.tolist())
    formulas = np.array([folds.data.store.formulas[row] for row in folds.rows])
    for formula in set(formulas):
        assert len(set(folds.fold[formulas == formula])) == 1
    data = folds.data_of(2)
    assert set(data.split.train) | set(data.split.test) == set(folds.rows)
    assert len(folds.data_of(2, most=7).split.train) == 7


def test_the_best_candidate_wins(folds: Folds) -> None:
    def noise(candidate: Candidate, epochs: int) -> float:
        return 0.1 if candidate == Candidate("one", "full", 1e-3) else 1.0

    rungs = search(FakeSetting(noise), folds, SETTINGS, budget=60, batch_size=8).rungs
    assert len(rungs) == 3
    assert len(rungs[0].scores) == 5
    assert rungs[-1].scores[0].candidate == Candidate("one", "full", 1e-3)
    assert SCRATCH in {score.candidate.strategy for score in rungs[-1].scores}, "from scratch always competes"
    verdict = decide(rungs, folds, poor(folds), {"the median": folds.medians()})
    assert verdict.candidate == Candidate("one", "full", 1e-3)
    assert verdict.estimate.low < 0.1 * np.sqrt(2 / np.pi) < verdict.estimate.high


def test_epochs_are_chosen_too(folds: Folds) -> None:
    def noise(candidate: Candidate, epochs: int) -> float:
        return 0.01 * epochs  # longer is worse

    rungs = search(FakeSetting(noise), folds, SETTINGS, budget=60, batch_size=8).rungs
    verdict = decide(rungs, folds, poor(folds), {})
    assert verdict.epochs == rungs[1].epochs < rungs[2].epochs


def test_what_the_labels_cannot_tell_is_not_claimed(folds: Folds) -> None:
    spread = float(np.abs(folds.medians() - folds.labels).mean()) * np.sqrt(np.pi / 2)
    rungs = search(FakeSetting(lambda *_: 5 * spread), folds, SETTINGS, budget=60, batch_size=8).rungs
    verdict = decide(rungs, folds, poor(folds), {"the median": folds.medians()})
    assert verdict.gains["the median"].low <= 0
    assert any("no gain over the median can be shown" in line or "WORSE" in line for line in verdict.lines)
    assert not any("; better by" in line and "the median" in line for line in verdict.lines)


def test_noise_is_moved_to_the_median(folds: Folds) -> None:
    rungs = search(FakeSetting(lambda *_: 50.0), folds, SETTINGS, budget=60, batch_size=8).rungs
    verdict = decide(rungs, folds, poor(folds), {"the median": folds.medians()})
    assert verdict.weights.median == 1
    assert verdict.gains["the median"].value == pytest.approx(0, abs=1e-12)


def test_the_choice_does_not_flatter_itself(folds: Folds) -> None:
    errors = np.abs(np.random.default_rng(0).normal(size=(50, len(folds.rows))))
    assert nested_errors(errors, folds.fold).mean() > errors.mean(axis=1).min()
    clear = np.concatenate([errors, errors[:1] / 10])
    np.testing.assert_array_equal(nested_errors(clear, folds.fold), clear[-1])


def test_the_search_ends_in_time(folds: Folds) -> None:
    setting = FakeSetting(lambda *_: 1.0, seconds=1e-4)
    began = time.monotonic()
    rungs = search(setting, folds, replace(SETTINGS, epochs=200), budget=6, batch_size=8).rungs
    took = time.monotonic() - began
    final = 1e-4 * len(folds.rows) * rungs[-1].epochs
    assert took + final < 9, f"took {took:.1f} s"
    assert rungs[0].scores


def test_the_winner_is_trained_over_folds_where_there_is_time(folds: Folds) -> None:
    setting = FakeSetting(lambda *_: 1.0, seconds=1e-4)
    assert search(setting, folds, SETTINGS, budget=30, batch_size=8).final_folds == 5
    assert search(setting, folds, replace(SETTINGS, epochs=300), budget=3, batch_size=8).final_folds == 0


@pytest.mark.parametrize("count", [12, 49])
def test_fewer_labels_than_folds_are_refused(tiny_store: Path, count: int) -> None:
    data = CrystalDataModule(str(tiny_store), train_size=4 if count == 12 else None)
    data.choose([NAME], tiny_encoder().recipe)
    with pytest.raises(InputError, match=r"4 labels of 4 formulas are fewer than 12 folds|fewer than 99 folds"):
        cut(data, 12 if count == 12 else 99, seed=0)


def test_the_command(foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words: list[Any] = ["adapt", "--pretrained", tiny_run, "--data.store", tiny_store, "--property", "shear_modulus"]
    words += [
        "--strategy",
        "auto",
        "--budget",
        "8s",
        "--auto.epochs",
        "4",
        "--auto.min_steps",
        "8",
        "--auto.folds",
        "3",
    ]
    words += ["--out", out, "--wandb", "off", "--trainer.accelerator", "cpu", "--auto.folds", "3"]
    answer = foundation(*words)
    assert answer.code == 0, answer.err
    assert "auto: chosen is " in answer.err
    assert "gradient-boosted trees" in answer.err
    metrics = json.loads((out / "metrics.json").read_text())
    auto = metrics["auto"]
    assert auto["estimate"]["low"] <= auto["estimate"]["value"] <= auto["estimate"]["high"]
    assert metrics["epochs"] == auto["epochs"]
    assert foundation("predict", out, tiny_store, "--out", tmp_path / "predicted.csv").code == 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--strategy", "auto", "--budget", "soon"], "'soon' is no time"),
        (["--strategy", "auto", "--budget", "0s"], "'0s' is no time"),
        (["--strategy", "full", "--budget", "1m"], "only --strategy auto takes one"),
        (["--strategy", "auto", "--auto.folds", "50"], "fewer than 50 folds"),
        (["--strategy", "auto", "--auto.candidates", '{"fulll": [1e-3]}'], "fulll"),
        (["--strategy", "auto", "--auto.candidates", "{}"], "there is nothing to try"),
        (["--strategy", "full", "--pretrained", "mp-small", "mp-small"], "several are for --strategy auto"),
    ],
)
def test_bad_input(
    words: list[str], said: str, foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    given = ["--data.store", tiny_store, "--property", "shear_modulus", "--out", tmp_path / "run"]
    pretrained = [] if "--pretrained" in words else ["--pretrained", tiny_run]
    answer = foundation("adapt", *pretrained, *given, *words)
    assert answer.code == 2, answer.err
    assert said in answer.err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_labels_that_are_all_the_same_are_refused(
    foundation: Command, tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "store", compounds(30))
    same = lambda data, start, block: np.full((len(block), len(data.names)), 2.5)  # noqa: E731
    monkeypatch.setattr(CrystalDataModule, "_read_labels", same)
    for strategy in ("auto", "full"):
        answer = foundation(
            "adapt", "--pretrained", tiny_run, "--data.store", store, "--property", "shear_modulus",
            "--strategy", strategy, "--out", tmp_path / "run",
        )  # fmt: skip
        assert answer.code == 2
        assert "labels are the same" in answer.err.splitlines()[-1]


def tensor_folds(tmp_path: Path) -> Folds:
    """Folds of dielectric tensors that grow with the number of atoms."""
    crystals = compounds(60)
    labels: dict[str, Any] = {"dielectric_total": [(np.eye(3) * (1 + len(c))).tolist() for c in crystals]}
    write_store(tmp_path / "store", crystals, labels, [KNOWN["dielectric_total"]])
    data = CrystalDataModule(str(tmp_path / "store"))
    data.choose(["dielectric_total"], tiny_encoder().recipe)
    return cut(data, 3, 0)


def test_the_opponent_of_a_tensor_is_the_mean_of_the_other_folds(tmp_path: Path) -> None:
    folds = tensor_folds(tmp_path)
    assert not folds.labels.any()
    sizes = np.array([1.0 + len(folds.data.store.crystal(row)) for row in folds.rows])
    expected = np.empty(len(sizes))
    for held in range(3):
        out = folds.fold == held
        expected[out] = np.sqrt(3) * np.abs(sizes[out] - sizes[~out].mean())
    _, opponents = of_shapes(folds, HeadSpec("heads.TensorHead", {}, KNOWN["dielectric_total"]))
    np.testing.assert_allclose(opponents["a guess by the mean"], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("dielectric_total", ["--head.class_path", "heads.TensorHead"]),
        ("order", ["--head.class_path", "heads.ClassificationHead"]),
        ("magmom_site", ["--head.class_path", "heads.AtomHead"]),
    ],
)
def test_auto_chooses_for_what_is_not_one_number(
    foundation: Command, tmp_path: Path, name: str, head: list[str]
) -> None:
    crystals = compounds(60)
    given: dict[str, Any] = {
        "dielectric_total": [(np.eye(3) * (1 + len(c))).tolist() for c in crystals],
        "order": [float(place % 3) for place in range(60)],
        "magmom_site": [[float(z % 5) for z in c.numbers] for c in crystals],
    }
    known = {**KNOWN, "order": Property("order", kind="class", classes=3)}
    write_store(tmp_path / "store", crystals, {name: given[name]}, [known[name]])
    words = ["adapt", "--strategy", "auto", "--budget", "8s", "--data.store", tmp_path / "store", "--property", name]
    words += [*head, *TINY, *QUIET, "--auto.candidates", '{"from_scratch": [1e-2, 1e-3]}', "--auto.folds", 3]
    words += ["--auto.min_steps", 8, "--auto.epochs", 4, "--out", tmp_path / "run"]
    answer = foundation(*words)
    assert answer.code == 0, answer.err
    found = json.loads((tmp_path / "run" / "metrics.json").read_text())["auto"]
    assert found["strategy"] == SCRATCH
    assert found["weights"] == {"encoder": 1.0, "forest": 0.0, "support_vectors": 0.0, "median": 0.0}
    assert found["estimate"]["low"] <= found["estimate"]["value"] <= found["estimate"]["high"]
    assert list(found["gains"]) == ["a guess by the mean"]
