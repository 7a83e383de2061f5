"""A study: which cells it has, what each leaves behind, and that none is computed twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Answer, Command
from studies import STUDY, write_lists, write_records, write_study
from testing import compounds

from datamodules.store import CrystalStore
from foundation.commands import adapt, pretrain
from foundation.commands.study import parser, prepare
from foundation.study.cells import COLUMNS, finished, job_of
from foundation.study.runner import bury, work

Study = Callable[..., Answer]


@pytest.fixture
def study(foundation: Command, sets: Path, tmp_path: Path) -> Study:
    """The command on the tiny study; its results are under `out`."""
    config = write_study(tmp_path / "study.yaml")

    def run(*words: object, config: Path = config, data: Path = sets) -> Answer:
        return foundation("study", "--config", config, "--data", data, "--out", tmp_path / "out", *words)

    return run


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The command lines of `foundation adapt` that the study runs."""
    calls: list[list[str]] = []
    real = adapt.main

    def main(words: Any) -> int:
        calls.append(list(words))
        return real(words)

    monkeypatch.setattr(adapt, "main", main)
    return calls


def results(tmp_path: Path) -> pd.DataFrame:
    return pd.read_csv(tmp_path / "out" / "results.csv")


def test_a_grid_resumes_without_computing_anything_again(
    study: Study, counted: list[list[str]], tiny_run: Path, tmp_path: Path
) -> None:
    words = ["--pretrained", tiny_run, "--cells", "size=10;source=joint,none;strategy=full,from_scratch,median"]
    answer = study(*words)
    assert answer.code == 0, answer.err
    table = results(tmp_path)
    assert tuple(table.columns) == COLUMNS
    assert list(zip(table.source, table.strategy, strict=True)) == [
        ("joint", "full"),
        ("none", "from_scratch"),
        ("none", "median"),
    ]
    assert set(table.status) == {"ok"}
    assert set(table.property) == {"gap"}
    assert set(table.trial) == {"trial1"}
    assert set(table.n_test) == {10}
    np.testing.assert_allclose(table.mae_scaled, table.mae_physical / 4.0, rtol=1e-6)  # the slope of the file's target
    assert [call[call.index("--strategy") + 1] for call in counted] == ["full", "from_scratch"]
    full = tmp_path / "out" / "cells" / "gap-10-trial1-seed0-joint-full"
    assert "--seeds=2" in counted[0]
    assert len(json.loads((full / "metrics.json").read_text())["members"]) == 2
    assert not list(full.rglob("*.ckpt"))
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*")}
    again = study(*words)
    assert again.code == 0
    assert "3 cells, 3 finished before, 0 to compute" in again.out
    assert len(counted) == 2
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out" / "cells").rglob("*")} == times


def test_models_over_folds_share_a_budget_and_no_member(study: Study, counted: list[list[str]], tmp_path: Path) -> None:
    write_study(tmp_path / "study.yaml", recipes={"from_scratch": {"larger": {"folds": 3}}, "others": {"larger": {}}})
    cells = "target=flat;size=10;strategy=from_scratch;seed=0,1"
    assert study("--cells", cells, "--budget", "10m").code == 0
    for call, seed in zip(counted, (0, 3), strict=True):
        assert "--folds=3" in call
        assert f"--seed={seed}" in call
        assert "--trainer.max_time=00:00:03:20" in call


def test_a_changed_recipe_is_computed_again(study: Study, counted: list[list[str]], tmp_path: Path) -> None:
    words = ["--cells", "target=flat;size=10;strategy=from_scratch", "--keep-models"]
    assert study(*words).code == 0
    assert list((tmp_path / "out" / "cells").rglob("*.ckpt"))
    write_study(tmp_path / "study.yaml", options={**STUDY["options"], "optimization.learning_rate": 0.01})
    assert study(*words, "--budget", "10m").code == 0
    assert len(counted) == 2
    assert "--trainer.max_time=00:00:10:00" in counted[1]
    (row,) = results(tmp_path).itertuples()
    assert (row.trial, row.status, row.n_test) == ("train", "ok", 10)


def test_what_crashes_is_recorded_and_the_study_goes_on(
    study: Study, monkeypatch: pytest.MonkeyPatch, tiny_run: Path, tmp_path: Path
) -> None:
    calls: list[str] = []

    def crash(words: Any) -> int:
        calls.append(words[words.index("--data.trial") + 1])
        raise ValueError("no such\nthing")

    monkeypatch.setattr(adapt, "main", crash)
    words = ["--pretrained", tiny_run, "--cells", "trial=trial1,trial2;size=10;strategy=full,median"]
    answer = study(*words)
    assert answer.code == 0, answer.err
    table = results(tmp_path)
    assert list(table.status) == ["failed", "ok", "failed", "ok"]
    assert set(table.error.dropna()) == {"ValueError: no such thing"}
    assert table.mae_scaled.isna().tolist() == [True, False, True, False]
    assert "ValueError" in (tmp_path / "out" / "cells" / "gap-10-trial1-seed0-joint-full" / "log.txt").read_text()
    assert study(*words).code == 0
    assert calls == ["trial1", "trial2"]
    assert study(*words, "--retry").code == 0
    assert calls == ["trial1", "trial2"] * 2


def test_a_source_is_trained_once_without_what_tests(
    study: Study, counted: list[list[str]], sets: Path, tmp_path: Path
) -> None:
    answer = study("--cells", "target=gap;size=10;source=joint@30,stiffness,gap;strategy=linear_probe")
    assert answer.code == 0, answer.err
    table = results(tmp_path).set_index("source")
    assert table.status.to_dict() == {"joint@30": "ok", "stiffness": "ok", "gap": "refused"}
    assert "gap itself" in table.error["gap"]
    assert len(counted) == 2
    sources = tmp_path / "out" / "sources"
    stores = {name: CrystalStore.open(sources / name / "store") for name in ("joint@30", "stiffness")}
    assert list(stores["joint@30"].properties) == ["band_gap", "volume"]
    assert list(stores["stiffness"].properties) == ["stiffness"]
    assert stores["stiffness"].properties["stiffness"].log
    assert len(stores["joint@30"]) == 30 < len(stores["stiffness"])
    targets = CrystalStore.open(tmp_path / "out" / "stores" / "gap")
    tested = {formula for id, formula in zip(targets.ids, targets.formulas, strict=True) if int(id[1:]) >= 50}
    assert len(tested) > 1
    for store in stores.values():
        assert not tested & set(store.formulas)
    made = (sources / "joint@30" / "model" / "card.json").stat().st_mtime_ns
    assert study("--cells", "target=stiffness;size=10;source=joint@30;strategy=linear_probe").code == 0
    assert (sources / "joint@30" / "model" / "card.json").stat().st_mtime_ns == made


def test_a_source_that_was_cut_off_goes_on(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[list[str]] = []
    last = tmp_path / "out" / "sources" / "stiffness" / "checkpoints" / "last.ckpt"

    def cut_off(words: Any) -> int:
        calls.append(list(words))
        last.parent.mkdir(exist_ok=True)
        last.touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "main", cut_off)
    words = ["--cells", "target=gap;size=10;source=stiffness;strategy=linear_probe"]
    for _ in range(2):
        assert study(*words).code == 130
    write_study(
        tmp_path / "study.yaml", pretraining=STUDY["pretraining"] | {"recipe": {"larger": {"data.batch_size": 8}}}
    )
    assert study(*words).code == 130
    assert [call[-2:] == ["--resume", str(last)] for call in calls] == [False, True, False]
    assert {path.name for path in (tmp_path / "out").rglob("*.lock")} <= {".results.lock"}


def test_two_processes_share_the_cells(study: Study, tmp_path: Path) -> None:
    cells = "target=gap;size=10,20;strategy=from_scratch,median"
    answer = study("--cells", cells, "--jobs", 2)
    assert answer.code == 0, answer.err
    assert list(results(tmp_path).status) == ["ok"] * 4
    assert answer.out.count(": MAE ") == 4
    assert not list((tmp_path / "out" / "cells").glob(".*.lock"))


def test_the_cell_of_a_process_that_died_has_failed(sets: Path, tmp_path: Path) -> None:
    config = write_study(tmp_path / "study.yaml")
    words = ["--config", config, "--data", sets, "--out", tmp_path / "out", "--cells", "size=10;strategy=median"]
    plan, cells = prepare(parser().parse_args([str(word) for word in words]))
    process = multiprocessing.get_context("spawn").Process(target=os._exit, args=(9,))
    process.start()
    process.join()
    lock = plan.cell_lock(cells[0])
    lock.parent.mkdir(parents=True)
    lock.write_text(json.dumps({"pid": process.pid, "host": socket.gethostname(), "started": "1"}))
    work_done = []
    work(plan, cells, cells, lambda: work_done.append(1))
    assert not work_done  # it may be a cell that kills every process
    bury(plan, cells, process)
    assert not lock.exists()
    row = finished(plan, cells[0], job_of(plan, cells[0]))
    assert row is not None
    assert row["status"] == "failed"
    assert "exit code 9" in row["error"]
    with pytest.raises(RuntimeError, match="exit code 9"):
        bury(plan, cells, process)


def test_every_cell_belongs_to_one_task_of_an_array(study: Study, tmp_path: Path) -> None:
    cells = ["--cells", "target=gap,stiffness;size=10,20;strategy=median"]
    assert study(*cells, "--task", "1/3").code == 0
    assert len(results(tmp_path)) == 2
    assert study(*cells, "--task", "2/3").code == 0
    assert study(*cells, "--task", "3/3").code == 0
    table = results(tmp_path)
    assert list(zip(table.property, table["size"], strict=True)) == [
        ("gap", 10),
        ("gap", 20),
        ("stiffness", 10),
        ("stiffness", 20),
    ]


def test_a_task_of_a_slurm_array_takes_its_share(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"ID": 7, "MIN": 5, "STEP": 2, "COUNT": 3}.items():  # --array=5-9:2
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert study("--cells", "target=gap,stiffness;size=10,20;strategy=median").code == 0
    table = results(tmp_path)
    assert list(zip(table.property, table["size"], strict=True)) == [("gap", 20)]


def test_what_a_run_leaves_becomes_a_row(study: Study, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[list[str]] = []

    def leave(words: Any) -> int:
        calls.append(list(words))
        test = {"mae": 2.0, "rmse": 3.0, "r2": 0.5, "count": 10, "median_predictor_mae": 4.0}
        seen = {"parts": {"test": {"same_quantity": {"formula": 6, "structure": 5}}}}
        metrics = {"test": {"gap": test}, "val": {"gap": {"mae": 1.0}}, "epochs": 3, "seconds": 9.0}
        metrics |= {"trainable_parameters": 77, "leakage": {"properties": {"gap": seen}}}
        folder = Path(words[words.index("--out") + 1])
        (folder / "metrics.json").write_text(json.dumps(metrics))
        return 0

    monkeypatch.setattr(adapt, "main", leave)
    cells = ["--cells", "target=gap;size=10;source=a;strategy=last_blocks+linear_probe,auto;seed=2"]
    answer = study("--pretrained", "a=mp-small", *cells, "--budget", "2m", "--leakage", "exclude")
    assert answer.code == 0, answer.err
    assert "the encoder has seen 6 of its test labels" in answer.out
    rows = results(tmp_path).set_index("strategy")
    assert rows.seconds["auto"] != 9.0  # its search counts too
    row = rows.loc["last_blocks+linear_probe"]
    expected = {"mae_scaled": 0.5, "mae_physical": 2.0, "r2": 0.5, "n_test": 10, "seconds": 9.0, "epochs": 3, "seed": 2}
    expected |= {"median_mae_scaled": 1.0, "val_mae_scaled": 0.25, "rmse_scaled": 0.75}
    expected |= {"trainable_parameters": 77, "seen_test": 6}
    assert {name: row[name] for name in expected} == pytest.approx(expected)
    by_hand, auto = calls
    assert by_hand[by_hand.index("--strategy") + 1] == "last_blocks,linear_probe"
    assert by_hand[by_hand.index("--leakage") + 1] == "exclude"
    assert by_hand[by_hand.index("--pretrained") + 1] == "mp-small"
    assert "--trainer.max_time=00:00:02:00" in by_hand
    assert auto[auto.index("--budget") + 1] == "120s"
    assert not [word for word in auto if word.startswith("--trainer.max_time")]


def test_members_of_two_seeds_are_not_the_same_models(
    study: Study, monkeypatch: pytest.MonkeyPatch, tiny_run: Path
) -> None:
    calls: list[list[str]] = []
    monkeypatch.setattr(adapt, "main", lambda words: calls.append(list(words)))  # leaves nothing: the cells fail
    study("--pretrained", tiny_run, "--cells", "target=gap;size=10;strategy=full;seed=0,1")
    assert [[word for word in call if word.startswith("--seed")] for call in calls] == [
        ["--seeds=2", "--seed=0"],
        ["--seeds=2", "--seed=2"],
    ]


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["--cells", "sise=10"], "no axis 'sise'"),
        (["--cells", "target=gap;target=flat"], "target is named twice"),
        (["--cells", "target="], "give target a value"),
        (["--cells", "size=ten"], "size 'ten' is not a number"),
        (["--cells", ""], "names no axis"),
        (["--cells", "target=gaps"], "no target 'gaps'; it has flat, gap, stiffness"),
        (["--cells", "size=11"], "trial1 has no list of 11 crystals; it has 10, 20"),
        (["--cells", "target=flat;size=31"], "train has no list of 31 crystals"),
        (["--cells", "trial=trial9"], "no trial 'trial9'"),
        (["--cells", "strategy=fully"], "no strategy 'fully'"),
        (["--cells", "source=bandgap"], "no source 'bandgap'; sources are none, joint"),
        (["--cells", "target=gap;source=gap"], "trained on gap itself"),
        (["--data", "nowhere"], "--data nowhere: no such folder"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--pretrained", "nowhere.ckpt"], "nowhere.ckpt: no checkpoint there"),
        (["--pretrained", "none=mp-small"], "is not 'none'"),
        (["--reference", "nowhere.csv"], "nowhere.csv"),
        (["--budget", "soon"], "'soon' is no time"),
        (["--task", "4/3"], "4/3: write I/N"),
        (["--jobs", "0"], "0: not a positive number"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    study: Study, tmp_path: Path, words: list[str], culprit: str
) -> None:
    answer = study(*words)
    assert answer.code == 2, answer
    assert answer.err.count("\n") == 1, answer.err
    assert culprit in answer.err, answer.err
    assert not (tmp_path / "out").exists()


def test_a_list_that_overlaps_its_test_list_and_a_target_of_one_value(study: Study, tmp_path: Path) -> None:
    crystals = compounds(12)
    ids = [crystal.id for crystal in crystals]
    write_records(tmp_path / "sets" / "same.json.gz", crystals, np.full(12, 3.0))
    write_lists(tmp_path / "sets", "same", {"train": ids[:8], "test": ids[7:]})
    answer = study("--cells", "strategy=median", data=tmp_path / "sets")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "'c7'" in answer.err
    assert not (tmp_path / "out").exists()
    write_lists(tmp_path / "sets", "same", {"train": ids[:8], "test": ids[8:]})
    answer = study("--cells", "strategy=median", data=tmp_path / "sets")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "all 12 values are 3; a property with one distinct value cannot be learned" in answer.err


def test_a_source_under_another_name_is_refused(study: Study, tiny_run: Path, tmp_path: Path) -> None:
    write_study(tmp_path / "study.yaml", same_quantity=[["gap", "band_gap"]])
    answer = study("--pretrained", tiny_run, "--cells", "target=gap;strategy=full")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "trained on gap under the name band_gap" in answer.err
    write_study(tmp_path / "study.yaml", same_quantity=[["stiffness", "shear_modulus"]])  # not in it
    named = study("--pretrained", f"tiny={tiny_run}", "--cells", "target=gap;size=10;source=tiny;strategy=linear_probe")
    assert named.code == 0, named.err
    assert results(tmp_path).source.tolist() == ["tiny"]
