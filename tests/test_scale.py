"""Plans for many GPUs, stores of many rows, and two processes beside one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Command
from testing import TINY, make_store, random_crystal

from datamodules.datamodule import CrystalDataModule
from datamodules.graph import NeighborRecipe
from foundation.benchmarks import rows
from foundation.planning import GIB, Machine, Probe, communication_seconds, imbalance, plan

PROBE = Probe(parameters=1_000_000, seconds=0.01, seconds_per_edge=1e-6, bytes_per_edge=2000.0, edges=500.0)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> CrystalDataModule:
    """Crystals of 1 to some 30 atoms."""
    sizes = np.random.default_rng(0).lognormal(1.5, 0.8, 60).astype(int) + 1
    store = make_store(
        tmp_path_factory.mktemp("uneven") / "store", [random_crystal(int(n), k) for k, n in enumerate(sizes)]
    )
    data = CrystalDataModule(str(store), batch_size=16, test_share=0.0)
    data.choose(["formation_energy_per_atom"], NeighborRecipe())
    return data


def test_a_plan_is_arithmetic(uneven: CrystalDataModule) -> None:
    machine = Machine(gpus=1, memory=10 * GIB, bandwidth=1e10)
    alone = plan(PROBE, machine, uneven, 1_000_000)
    compute = 0.01 + 16 * 500 * 1e-6
    assert alone["crystals_per_second"] == pytest.approx(16 / compute)
    assert alone["epochs_per_day"] == pytest.approx(86_400 * 16 / compute / 1e6)
    assert alone["steps"] == pytest.approx(1e6 / 16)
    assert alone["weights"] == pytest.approx(6 * 4e6 / GIB)
    assert alone["memory"] == pytest.approx((6 * 4e6 + 16 * 500 * 2000) / GIB)
    assert alone["largest_batch"] == pytest.approx((9 * GIB - 6 * 4e6) / 1e6)
    assert (alone["communication"], alone["waiting"]) == (0, 0)


def test_many_gpus_share_wait_and_communicate(uneven: CrystalDataModule) -> None:
    machines = [Machine(8, 10 * GIB, 1e9, strategy) for strategy in ("ddp", "fsdp2")]
    ddp, fsdp2 = (plan(PROBE, machine, uneven, 1_000_000) for machine in machines)
    assert communication_seconds(4_000_000, machines[0]) == pytest.approx(2 * 7 / 8 * 4e6 / 1e9)
    step = 16 * 8 / ddp["crystals_per_second"]
    assert ddp["communication"] == pytest.approx(2 * 7 / 8 * 4e6 / 1e9 / step)
    assert fsdp2["weights"] < ddp["weights"] / 8
    assert fsdp2["communication"] > ddp["communication"]
    assert 0 < ddp["waiting"] < 0.2
    assert 1 == imbalance(uneven, 1) < imbalance(uneven, 8)
    given = plan(PROBE, Machine(1, GIB, 1e9, rate=4000.0), uneven, 1_000_000)
    assert given["crystals_per_second"] == pytest.approx(4000)


def test_plan_probes_and_says_what_it_assumes(foundation: Command, tiny_store: Path) -> None:
    words = ["plan", "--data.store", tiny_store, *TINY, "--trainer.accelerator", "cpu", "--gpus", 64]
    answer = foundation(*words, "--crystals", 100_000_000, "--bandwidth", 10)
    assert answer.code == 0, answer.err
    assert "100,000,000 crystals on 64 GPUs, ddp" in answer.out
    for name in ("memory of a GPU", "largest batch", "crystals/s", "epochs per day", "communication", "10 GB/s"):
        assert name in answer.out
    answer = foundation(*words, "--bandwidth", -1)
    assert (answer.code, answer.err.strip()) == (2, "foundation: error: --bandwidth -1.0: give a positive number")


@pytest.mark.parametrize("temperature", [None, 2.0])
def test_a_store_made_by_repetition_is_a_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, temperature: float | None
) -> None:
    monkeypatch.setattr(rows, "SHARD_ROWS", 700)
    monkeypatch.setattr(rows, "BATCHES", 5)
    rows.make_store(tmp_path / "store", 3)
    found = rows.measure(tmp_path / "store", temperature)
    assert found["rows"] == 2100
    assert found["index"] <= 12 + (temperature is not None)
    data = CrystalDataModule(str(tmp_path / "store"))
    data.choose(list(rows.NAMES), NeighborRecipe())
    for row in (0, 699, 700, 2099):
        crystal = data.store.crystal(row)
        batch = data.graphs.gather([row])
        assert batch.z.tolist() == crystal.numbers.tolist()
        assert batch.volume.item() == pytest.approx(crystal.volume)
        expected = data.store.labels(rows.NAMES)[row]
        np.testing.assert_allclose(data.labels[row].numpy(), expected, rtol=1e-6)
    assert torch.isnan(data.labels).float().mean() == pytest.approx(0.3, abs=0.05)


def test_memory_of_a_process_hardly_grows_with_the_rows(tmp_path: Path) -> None:
    """By what the sampler holds of a row: labels, split and graphs are mapped files, which the first process writes."""
    found = rows.compare_sizes(tmp_path, [150_000, 800_000], temperature=2.0)
    assert [(one["rows"], one["opened"]) for one in found[1:3]] == [(150_000, "again"), (800_000, "first")]
    for few, many, most in ((found[0], found[2], 45), (found[1], found[3], 18)):
        grown = {when: (many[when] - few[when]) * 2**20 / 650_000 for when in ("before", "after", "peak")}
        assert abs(grown["before"]) < 5
        assert grown["after"] < 16
        assert grown["peak"] < most
        assert many["peak_row"] == pytest.approx((many["peak"] - many["before"]) * 2**20 / 800_000)


def test_two_processes_are_compared_with_one(foundation: Command, tmp_path: Path) -> None:
    out, words = tmp_path / "scaling.json", ("--rounds", 1, "--steps", 1, "--batch-size", 8)
    answer = foundation("benchmark", "scaling", *words, "--out", out)
    assert answer.code == 0, answer.err
    assert "idle check" in answer.out
    found = json.loads(out.read_text())
    assert found["batch_size"] == 8
    for way in ("balanced", "counted"):
        for place, clock in enumerate(("wall", "processor")):
            expected = found["alone"][0][place] / found[way][0][place] / 2
            assert found["efficiency"][way][clock]["median"] == pytest.approx(expected)
    assert 0 < found["core"][0] <= 1.05
