"""The benchmark of tensors: one split for all, runs that are kept, and a summary that divides what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, Command
from testing import QUIET, TINY, TINY_ENCODER, compounds

from datamodules.datamodule import CrystalDataModule
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN, Property
from datamodules.store import CrystalStore, write_store
from foundation.benchmarks import heads, tensors
from foundation.benchmarks.heads import time_heads
from foundation.benchmarks.tensors import QUANTITIES, compare_tensors, isotropic_error, prepare, summary
from foundation.training.spec import HeadSpec

NAME = "dielectric_total"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of the benchmark with a store of 150 crystals and their dielectric tensors."""
    crystals = compounds(150)
    labels: dict[str, Any] = {
        NAME: [(np.eye(3) * len(crystal)).tolist() for crystal in crystals],
        "poly_total": [float(len(crystal)) for crystal in crystals],
    }
    store = tmp_path / "stores" / QUANTITIES[NAME].folder
    write_store(store, crystals, labels, [KNOWN[NAME], Property("poly_total", log=True)])
    return tmp_path


def test_lists_share_no_formula_with_those_that_test(folder: Path) -> None:
    path, lists = prepare(folder, folder, QUANTITIES[NAME])
    found = json.loads(lists.read_text())
    store = CrystalStore.open(path)
    formula = dict(zip((ids[0].partition(":")[2] for ids in store.source_ids), store.formulas, strict=True))
    few, all_ = sorted(found["trial1"], key=int)
    assert (int(few), len(found["trial1"][few])) == (112, 112)
    assert len(found["trial1"][all_]) == int(all_) == len(store) - len(found["test"])
    assert not {formula[i] for i in found["trial1"][all_]} & {formula[i] for i in found["test"]}
    data = CrystalDataModule(str(path), splits=str(lists), trial="trial1", train_size=112, val_share=tensors.VAL_SHARE)
    data.choose([NAME], NeighborRecipe())
    assert (len(data.split.train), len(data.split.val)) == (100, 12)
    before = lists.read_text()
    prepare(folder, folder, QUANTITIES[NAME])
    assert lists.read_text() == before


def test_runs_are_kept_and_summed_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []

    def adapt(*words: Any) -> None:
        said = dict(zip(map(str, words[1::2]), words[2::2], strict=False))
        started.append([str(word) for word in words])
        mae = (1.0 if "--pretrained" in words else 2.0) + int(said["--seed"])
        run = Path(said["--out"])
        run.mkdir(parents=True)
        metrics = {"mae": mae, "baseline_mae": 4.0, "unit": "", "derived": {"n": {"mae": 1.0, "median_mae": 2.0}}}
        (run / "metrics.json").write_text(json.dumps({"seconds": 1.0, "test": {said["--property"]: metrics}}))

    monkeypatch.setattr(tensors, "_foundation", adapt)
    monkeypatch.setattr(tensors, "isotropic_error", lambda *_: {"frobenius": 9.0})
    found = compare_tensors(folder, folder, [NAME], ["100", "all"], 2)
    assert len(started) == 12  # two starts, two seeds; all labels: a scalar head as well
    own = summary(found)
    assert own[["size", "mp-small", "from_scratch", "ratio", "guess", "of the guess"]].to_numpy().tolist() == [
        ["100", 1.5, 2.5, 0.6, 4.0, 0.375],
        ["all", 1.5, 2.5, 0.6, 4.0, 0.375],
    ]
    assert set(found.loc[found["learned"] == "poly_total", "frobenius"]) == {9.0}
    assert found["n_mae"].tolist() == [1.0] * 12
    pd.testing.assert_frame_equal(compare_tensors(folder, folder, [NAME], ["100", "all"], 2), found)
    assert len(started) == 12
    assert len(pd.read_csv(folder / "results.csv")) == 12


def test_a_scalar_stands_for_the_unit_tensor(folder: Path, foundation: Command) -> None:
    """Labels are a number times the unit tensor: their error is that of the number, times the root of three."""
    store, lists = prepare(folder, folder, QUANTITIES[NAME])
    words = ["pretrain", "--data.store", store, "--data.properties", "poly_total", "--data.splits", lists]
    assert foundation(*words, *TINY[:-4], *QUIET, "--trainer.max_epochs", 1, "--out", folder / "run").code == 0
    said = json.loads((folder / "run" / "metrics.json").read_text())["test"]["poly_total"]["mae"]
    found = isotropic_error(folder / "run", NAME, "poly_total", store, lists)
    assert found["frobenius"] == pytest.approx(said * 3**0.5, rel=1e-5)


def test_every_quantity_has_its_configuration(shared_data: Path) -> None:
    for quantity in QUANTITIES.values():
        assert (ROOT / "configs" / f"{quantity.config}.yaml").is_file()
        assert (shared_data / quantity.folder / "data.jsonl.gz").is_file()


def test_heads_are_timed_beside_the_scalars(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "encoder_config", lambda: TINY_ENCODER)
    monkeypatch.setattr(heads, "BATCHES", 1)
    config = yaml.safe_load((ROOT / "configs" / "pretrain_tensors.yaml").read_text())["heads"]
    specs = {
        name: HeadSpec(head["class_path"], head.get("init_args", {}), KNOWN[name]) for name, head in config.items()
    }
    rows = time_heads(None, specs, 2)
    others = [f"and {name}" for name in list(specs)[2:]]
    assert [row["heads"] for row in rows[:-1]] == ["scalar heads", *others, "all heads"]
    assert rows[0]["ratio"] == rows[0]["lowest"] == rows[0]["highest"] == 1.0
    assert all(0 < row["lowest"] <= row["ratio"] <= row["highest"] for row in rows)


@pytest.mark.parametrize(
    ("heads", "said"),
    [
        (
            "{band_gap: {class_path: heads.ScalarHead}, hardness: {class_path: heads.ScalarHead}}",
            "hardness is declared",
        ),
        ("{is_metal: {class_path: heads.ClassificationHead}}", "no ScalarHead to compare with"),
    ],
)
def test_heads_that_cannot_be_timed(foundation: Command, tmp_path: Path, heads: str, said: str) -> None:
    (tmp_path / "config.yaml").write_text(f"heads: {heads}")
    answer = foundation("benchmark", "heads", "--config", tmp_path / "config.yaml")
    assert answer.code == 2
    assert said in answer.err
