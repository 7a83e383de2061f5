"""The commands end to end on a tiny store: pretrain, adapt, evaluate, inspect, and what they record."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Answer, Command
from testing import QUIET, TINY
from wandb_records import record_of, summary

from foundation.checkpoint import find_members, load_checkpoint

SHORT = [*QUIET, "--trainer.max_epochs", "1"]


def adapt(foundation: Command, run: Path, store: Path, out: Path, *more: object) -> Answer:
    words = ["adapt", "--pretrained", run, "--data.store", store, "--property", "shear_modulus", *SHORT, "--out", out]
    return foundation(*words, *more)


def read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content


@pytest.mark.parametrize("strategy", ["linear_probe", "last_blocks", "full", "from_scratch"])
def test_adapt_by_every_strategy(
    foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path, strategy: str
) -> None:
    answer = adapt(foundation, tiny_run, tiny_store, tmp_path / "run", "--strategy", strategy)
    assert answer.code == 0, answer.err
    assert "shear_modulus" in answer.out
    transferred = strategy != "from_scratch"
    assert ("kept: the whole encoder" in answer.err) == transferred
    metrics = read(tmp_path / "run" / "metrics.json")
    counts = {"linear_probe": 89, "last_blocks": 1669, "full": 4389, "from_scratch": 4389}
    assert metrics["trainable_parameters"] == counts[strategy]
    assert metrics["test"]["shear_modulus"]["unit"] == "GPa"
    card = load_checkpoint(find_members(str(tmp_path / "run"))[0]).card
    assert (card["pretrained"] is not None) == transferred
    frozen = {stage for stage, rate in card["rates"].items() if rate == 0}
    assert len(frozen) == {"linear_probe": 6, "last_blocks": 3}.get(strategy, 0)


def test_from_scratch_needs_no_checkpoint(foundation: Command, tiny_store: Path, tmp_path: Path) -> None:
    words = ["adapt", "--data.store", tiny_store, "--property", "shear_modulus", "--strategy", "from_scratch"]
    assert foundation(*words, *TINY, *SHORT, "--out", tmp_path / "run").code == 0
    assert load_checkpoint(find_members(str(tmp_path / "run"))[0]).card["pretrained"] is None


def test_adapt_by_patterns_with_layer_decay(
    foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    more = ["--strategy", "full", "--unfreeze", "blocks.1.*, readout", "--layer-decay", 0.5]
    answer = adapt(foundation, tiny_run, tiny_store, tmp_path / "run", *more)
    assert answer.code == 0, answer.err
    rates = load_checkpoint(find_members(str(tmp_path / "run"))[0]).card["rates"]
    assert list(rates.values()) == [0.0, 0.0, 0.0, 0.5, 0.5, 1.0]
    shown = foundation("inspect", tmp_path / "run")
    assert shown.code == 0
    for text in ("frozen", "trains at 0.5 of the rate", "shear_modulus", "GPa", "mean ", "starting from", "band_gap"):
        assert text in shown.out


def test_a_head_of_another_kind(foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path) -> None:
    words = ["adapt", "--pretrained", tiny_run, "--data.store", tiny_store, "--strategy", "full", *SHORT]
    more = ["--property", "is_metal", "--head", "heads.ClassificationHead", "--out", tmp_path / "run"]
    answer = foundation(*words, *more)
    assert answer.code == 0, answer.err
    test = read(tmp_path / "run" / "metrics.json")["test"]["is_metal"]
    assert {"accuracy", "f1"} <= test.keys()
    assert "mae" not in test


@pytest.fixture(scope="module")
def ensemble(tiny_run: Path, tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble of two."""
    from foundation.cli import main

    out = tmp_path_factory.mktemp("runs") / "ensemble"
    words = ["adapt", "--pretrained", tiny_run, "--data.store", tiny_store, "--property", "shear_modulus", *SHORT]
    assert main([str(word) for word in [*words, "--strategy", "full", "--seeds", 2, "--out", out]]) == 0
    return out


def test_several_seeds_are_an_ensemble(foundation: Command, ensemble: Path, tiny_store: Path, tmp_path: Path) -> None:
    assert [path.parent.parent.name for path in find_members(str(ensemble))] == ["seed0", "seed1"]
    first, second = (load_checkpoint(member) for member in find_members(str(ensemble)))
    weight = "heads.shear_modulus.network.0.weight"
    assert not torch.equal(first.weights[weight], second.weights[weight])
    assert first.card["data"]["split"] == second.card["data"]["split"]
    metrics = read(ensemble / "metrics.json")
    assert len(metrics["members"]) == 2
    assert metrics["test"]["shear_modulus"]["members"] == 2
    assert metrics["test"]["shear_modulus"]["spread"] > 0
    answer = foundation("evaluate", ensemble, "--data.store", tiny_store, "--out", tmp_path / "judged")
    assert answer.code == 0, answer.err
    again = read(tmp_path / "judged" / "metrics.json")["test"]
    assert again["shear_modulus"]["mae"] == pytest.approx(metrics["test"]["shear_modulus"]["mae"], rel=1e-4)
    shown = foundation("inspect", ensemble)
    assert "an ensemble of 2" in shown.out


def test_an_ensemble_that_was_cut_off_goes_on_with_the_member_it_was_at(
    foundation: Command, ensemble: Path, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(ensemble, cut)
    shutil.rmtree(cut / "seed1")
    (cut / "metrics.json").unlink()
    words = ["adapt", "--pretrained", tiny_run, "--data.store", tiny_store, "--property", "shear_modulus", *SHORT]
    answer = foundation(*words, "--strategy", "full", "--seeds", 2, "--out", cut, "--resume", "auto")
    assert answer.code == 0, answer.err
    once, again = (read(folder / "metrics.json")["members"] for folder in (ensemble, cut))
    assert once == again


def test_an_ensemble_is_not_a_single_start(
    foundation: Command, ensemble: Path, tiny_store: Path, tmp_path: Path
) -> None:
    answer = adapt(foundation, ensemble, tiny_store, tmp_path / "run", "--strategy", "full")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "seed0" in answer.err


def test_evaluate_gives_what_training_gave(
    foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    """The saved checkpoint is the model whose metrics the run has written."""
    for split in ("val", "test"):
        answer = foundation("evaluate", tiny_run, "--data.store", tiny_store, "--split", split, "--out", tmp_path)
        assert answer.code == 0, answer.err
        found, expected = read(tmp_path / "metrics.json")[split], read(tiny_run / "metrics.json")[split]
        assert found.keys() == expected.keys() == {"formation_energy_per_atom", "band_gap"}
        for name, metrics in expected.items():
            assert found[name].pop("unit") == metrics.pop("unit")
            assert found[name] == pytest.approx(metrics, rel=1e-4, abs=1e-6)
    every = foundation("evaluate", tiny_run, "--data.store", tiny_store, "--split", "all", "--out", tmp_path)
    assert "formation_energy_per_atom" in every.out
    assert read(tmp_path / "metrics.json")["all"]["formation_energy_per_atom"]["count"] == 60


def test_a_recorded_configuration_is_the_run(foundation: Command, tiny_run: Path, tmp_path: Path) -> None:
    content = yaml.safe_load((tiny_run / "config.yaml").read_text())
    assert content["trainer"]["max_epochs"] == 2
    answer = foundation("pretrain", "--config", tiny_run / "config.yaml", "--out", tmp_path / "again")
    assert answer.code == 0, answer.err
    one, two = (load_checkpoint(find_members(str(run))[0]).weights for run in (tiny_run, tmp_path / "again"))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_run_is_never_overwritten_unasked(
    foundation: Command, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["pretrain", "--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *SHORT]
    for name in ("mine", "mine-2"):
        assert foundation(*words, "--name", "mine").code == 0
        assert (tmp_path / "runs" / name / "metrics.json").is_file()
    answer = foundation(*words, "--out", "runs/mine")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "runs/mine: holds a run already" in answer.err
    assert foundation(*words, "--out", "runs/mine", "--overwrite", "true").code == 0


def test_configured_properties_that_the_store_lacks_are_dropped_with_a_warning(
    foundation: Command, tiny_store: Path, tmp_path: Path
) -> None:
    answer = foundation("pretrain", "--data.store", tiny_store, *TINY, *SHORT, "--out", tmp_path / "run")
    assert answer.code == 0
    assert "warning: store" in answer.err
    assert "no property 'e_above_hull'; its head is dropped" in answer.err


def test_the_shared_folder_is_the_same_model(tiny_run: Path) -> None:
    """What ``model.safetensors`` holds is what the last checkpoint holds."""
    checkpoint, shared = load_checkpoint(find_members(str(tiny_run))[0]), load_checkpoint(tiny_run / "model")
    assert shared.card == json.loads(json.dumps(checkpoint.card))
    state = shared.build().state_dict()
    assert [
        name for name, tensor in checkpoint.build().state_dict().items() if not torch.equal(tensor, state[name])
    ] == []


def test_two_processes_leave_one_run(tiny_store: Path, tmp_path: Path) -> None:
    """Both processes run the whole command; one folder, one set of metrics over all test crystals is left."""
    two = ["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.properties", "band_gap"]
    words = ["pretrain", "--data.store", tiny_store, *TINY, *SHORT, *two, "--name", "both", "--wandb", "offline"]
    answer = subprocess.run(
        [sys.executable, "-m", "foundation", *map(str, words)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["both"]
    metrics = read(tmp_path / "runs" / "both" / "metrics.json")
    assert (
        metrics["test"]["band_gap"]["crystals"]
        == load_checkpoint(tmp_path / "runs" / "both" / "checkpoints" / "last.ckpt").card["data"]["split"]["test"]
    )
    assert answer.stdout.count("median predictor mae") == 1
    record = summary(record_of(tmp_path / "runs" / "both"))  # the first process's, and no other
    assert record["summary"]["final/test/band_gap/crystals"] == metrics["test"]["band_gap"]["crystals"]
    assert record["run_id"] == (tmp_path / "runs" / "both" / "wandb-run-id").read_text().strip()


def test_strategies_go_together(
    foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["adapt", "--pretrained", tiny_run, "--data.store", tiny_store, "--property", "shear_modulus", *QUIET]
    words += ["--strategy", "last_blocks,l2_sp,gradual", "--strategy.init_args.count", "2", "--trainer.max_epochs", "1"]
    answer = foundation(*words)
    assert answer.code == 0, answer.err
    assert "frozen: embedding\n" in answer.err
    card = load_checkpoint(tmp_path / "runs/adapt-shear_modulus-last_blocks-l2_sp-gradual/checkpoints/last.ckpt").card
    assert [stage for stage, rate in card["rates"].items() if rate == 0] == ["embedding"]
    assert foundation(*words[:-4], "--strategy", "last_blocks,nothing").code == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full disk is /dev/full")
def test_a_log_on_a_full_disk_does_not_stop_a_training(tiny_store: Path, tmp_path: Path) -> None:
    words = [
        "pretrain",
        "--data.store",
        tiny_store,
        "--data.properties",
        "band_gap",
        *TINY,
        *SHORT,
        "--compile",
        "auto",
    ]
    command = [sys.executable, "-m", "foundation", *map(str, words), "--out", str(tmp_path / "run")]
    with Path("/dev/full").open("w") as full:
        assert subprocess.run(command, stdout=full, stderr=full, check=False).returncode == 0
        assert read(tmp_path / "run" / "metrics.json")["epochs"] == 1
        # An answer that is lost is no success.
        assert subprocess.run([*command[:3], "--version"], stdout=full, stderr=full, check=False).returncode != 0


def test_without_test_crystals_the_parity_plot_is_of_those_that_validate(
    foundation: Command, tiny_run: Path, tiny_store: Path, tmp_path: Path
) -> None:
    for name, more in (("one", []), ("two", ["--seeds", 2])):
        words = ["--strategy", "linear_probe", "--data.test_share", 0, *more]
        assert adapt(foundation, tiny_run, tiny_store, tmp_path / name, *words).code == 0
        assert (tmp_path / name / "plots" / "parity.png").is_file()
