"""Compiling: chosen by a stated rule, without a trace in the training, and obeyed by a resumed run."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Answer, Command
from launching import launch_two
from test_training import differing, read
from testing import QUIET, TINY

from foundation.encoder.encoder import EquivariantEncoder
from foundation.training import compilation

Run = Callable[..., Answer]

# The program as it is, and then what torch says of its cache of compiled graphs.
COUNTED = """
import sys
from foundation.cli import main
code = main()
from torch._dynamo.utils import counters
found = counters["inductor"]
print("cache:", found["fxgraph_cache_hit"], "hits,", found["fxgraph_cache_miss"], "misses", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def pretrain(foundation: Command, tiny_store: Path, tmp_path: Path) -> Run:
    """A short pretraining into a folder of this name."""

    def run(name: str, *words: object, epochs: int = 1) -> Answer:
        command = ["pretrain", "--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET]
        command += ["--data.batch_size", 8, "--optimization.schedule_epochs", 4, "--trainer.max_epochs", epochs]
        answer = foundation(*command, "--out", tmp_path / name, *words)
        assert answer.code in (0, 2), answer.err
        return answer

    return run


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What encoders were asked to compile with; nothing is compiled."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(EquivariantEncoder, "compile", lambda self, **options: calls.append(options))
    monkeypatch.setattr(compilation, "_compiled_here", set())
    return calls


def paying(monkeypatch: pytest.MonkeyPatch, *answers: bool) -> list[tuple[float, float]]:
    """Answer the question whether compiling pays; the last answer stays."""
    asked: list[tuple[float, float]] = []

    def pays(total: float, cost: float) -> bool:
        asked.append((total, cost))
        return answers[min(len(asked), len(answers)) - 1]

    monkeypatch.setattr(compilation, "pays", pays)
    return asked


def numerics(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = read(folder)["foundation"]["numerics"]
    return found


def test_timed_steps_leave_no_trace(pretrain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[float] = []
    step_seconds, on_train_start = compilation._step_seconds, compilation.Compilation.on_train_start

    def drawing(*arguments: Any) -> float:
        timed.append(torch.rand(1).item() + random.random() + np.random.random())
        return step_seconds(*arguments)

    def watched(self: Any, trainer: Any, module: Any) -> None:
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        on_train_start(self, trainer, module)
        after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
        assert differing(before, after) == []
        assert all(parameter.grad is None for parameter in module.parameters())

    monkeypatch.setattr(compilation, "_step_seconds", drawing)
    monkeypatch.setattr(compilation.Compilation, "on_train_start", watched)
    paying(monkeypatch, True, False)  # all of them are timed, and then the run stays eager
    answer = pretrain("auto", "--compile", "auto", epochs=2)
    assert "compile: no, 10 steps of " in answer.err
    assert len(timed) == 4
    pretrain("never", "--compile", "false", epochs=2)
    assert len(timed) == 4
    parts = ("state_dict", "optimizer_states", "lr_schedulers", "current_model_state", "averaging_state", "loops")
    auto, never = read(tmp_path / "auto"), read(tmp_path / "never")
    assert [found for part in parts for found in differing(auto[part], never[part], part)] == []
    found = differing(auto["foundation"], never["foundation"])
    assert set(found) == {"/run/id", "/run/name", "/run/group"}  # two runs


def test_a_short_run_stays_eager_after_one_timed_step(
    pretrain: Run, tmp_path: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    answer = pretrain("run", "--compile", "auto")
    assert "and costs 110 s" in answer.err
    assert "compile: no, 5 steps of " in answer.err
    assert compiled == []
    expected = {"compiled": False, "precision": "32-true", "matmul_precision": "highest"}
    assert numerics(tmp_path / "run") == expected


@pytest.mark.parametrize("choice", [True, False])
def test_a_resumed_run_obeys_the_first_choice(
    pretrain: Run, tmp_path: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch, choice: bool
) -> None:
    paying(monkeypatch, choice)
    word = "yes" if choice else "no"
    assert f"compile: {word}, 5 steps of " in pretrain("run", "--compile", "auto").err
    paying(monkeypatch, not choice)
    resume = ["--resume", tmp_path / "run" / "checkpoints" / "last.ckpt"]
    answer = pretrain("run", "--compile", "auto", *resume, epochs=2)
    assert f"compile: {word}, as in the run that this one goes on from" in answer.err
    assert compiled == [{"dynamic": True}] * (2 * choice)
    assert numerics(tmp_path / "run")["compiled"] is choice
    pretrain("run", "--compile", str(not choice).lower(), *resume, epochs=3)
    assert numerics(tmp_path / "run")["compiled"] is not choice


def test_an_ensemble_chooses_once_for_all_its_steps(
    foundation: Command, tiny_store: Path, tmp_path: Path, compiled: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    asked = paying(monkeypatch, True)
    words = ["adapt", "--strategy", "from_scratch", "--property", "band_gap", "--data.store", tiny_store, *TINY, *QUIET]
    words += ["--data.batch_size", 8, "--trainer.max_epochs", 1, "--seeds", 2, "--compile", "auto"]
    answer = foundation(*words, "--out", tmp_path / "run")
    assert answer.code == 0, answer.err
    assert answer.err.count("compile: yes") == 1
    assert "compile: yes, 10 steps of " in answer.err
    assert compiled == [{"dynamic": True}] * 2
    assert [numerics(tmp_path / "run" / f"seed{seed}")["compiled"] for seed in (0, 1)] == [True, True]
    assert {cost for _, cost in asked} == {compilation.COLD_SECONDS}
    # What is in the cache costs less, and what this process has compiled nothing.
    monkeypatch.setattr(compilation, "_compiled_here", set())
    (mark,) = (tmp_path / "cache").glob("foundation-*")
    key = mark.name.removeprefix("foundation-")
    assert compilation._cost(key) == compilation.WARM_SECONDS
    compilation._compiled_here.add(key)
    assert compilation._cost(key) == 0


def test_without_a_compiler(pretrain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    answer = pretrain("auto", "--compile", "auto")
    assert "compile: no, there is no C++ compiler 'no-such-compiler' here" in answer.err
    answer = pretrain("asked", "--compile", "true")
    assert answer.code == 2
    assert "error: --compile true: there is no C++ compiler 'no-such-compiler'" in answer.err.splitlines()[-1]
    assert not (tmp_path / "asked").exists()


def test_where_compiling_fails(pretrain: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compile(self: Any, disable: bool = False, **options: Any) -> None:
        def failing(*arguments: Any) -> None:
            raise RuntimeError("no header\nand more")

        self._compiled_call_impl = None if disable else failing

    monkeypatch.setattr(EquivariantEncoder, "compile", compile)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    paying(monkeypatch, True)
    problem = "torch.compile fails here: no header; if a job was killed while it compiled, remove "
    answer = pretrain("auto", "--compile", "auto")
    assert f"compile: no, {problem}{tmp_path / 'cache'}\n" in answer.err
    assert numerics(tmp_path / "auto")["compiled"] is False
    answer = pretrain("asked", "--compile", "true")
    assert answer.code == 2
    assert answer.err.splitlines()[-1].endswith(f"{problem}{tmp_path / 'cache'}, or use --compile auto")


@pytest.mark.skipif(compilation._missing_compiler() is not None, reason="no C++ compiler")
def test_compiled_four_epochs_are_two_and_two_resumed(tiny_store: Path, tmp_path: Path) -> None:
    """Each in a process of its own, as jobs on a cluster are."""
    words = ["--data.store", tiny_store, "--data.properties", "band_gap", *TINY, "--encoder.num_blocks", 1]
    words += ["--wandb", "off", "--trainer.accelerator", "cpu", "--data.batch_size", 8]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}

    def pretrain(name: str, epochs: int, *more: object) -> str:
        command = ["pretrain", *words, "--trainer.max_epochs", epochs, "--optimization.schedule_epochs", 4, *more]
        return subprocess.run(
            [sys.executable, "-c", COUNTED, *map(str, command), "--out", str(tmp_path / name)],
            env=env,
            capture_output=True,
            text=True,
            check=True,
        ).stderr

    def cache(printed: str) -> tuple[int, int]:
        found = re.search(r"^cache: (\d+) hits, (\d+) misses$", printed, re.MULTILINE)
        assert found, printed
        return int(found[1]), int(found[2])

    cold = pretrain("four", 4, "--compile", "true")
    assert "compile: took " in cold
    hits, misses = cache(cold)
    assert hits == 0
    assert misses > 0
    assert cache(pretrain("two", 2, "--compile", "true")) == (misses, 0)  # what the first compiled, the second finds
    resumed = pretrain("two", 4, "--resume", tmp_path / "two" / "checkpoints" / "last.ckpt")
    assert "compile: yes, as in the run that this one goes on from" in resumed
    assert cache(resumed) == (misses, 0)
    one, two = read(tmp_path / "four"), read(tmp_path / "two")
    parts = ("state_dict", "optimizer_states", "current_model_state", "averaging_state")
    assert [found for part in parts for found in differing(one[part], two[part], part)] == []
    pretrain("eager", 4, "--compile", "false")
    # Errors, not weights: the bias of the attention's logits has no gradient but rounding, which Adam turns into steps.
    errors = [
        json.loads((tmp_path / name / "metrics.json").read_text())["test"]["band_gap"]["mae"]
        for name in ("four", "eager")
    ]
    assert errors[0] == pytest.approx(errors[1], rel=1e-4)


@pytest.mark.skipif(compilation._missing_compiler() is not None, reason="no C++ compiler")
def test_two_processes_train_compiled_as_one_model(tiny_store: Path, tmp_path: Path) -> None:
    """Each sees crystals of its own: weights stay equal only where gradients of compiled steps are averaged."""
    launch_two("compiled.py", tiny_store, tmp_path)
    one, two = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert one["compiled"]
    assert two["compiled"]
    assert differing(one["weights"], two["weights"]) == []
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["steps"] > 3


def test_the_cache_stays_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "given"))
    assert compilation.cache_folder() == tmp_path / "given"
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    expected = tmp_path / "xdg" / "foundation" / "inductor"
    assert compilation.cache_folder() == expected
    assert expected.is_dir()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(expected)
    (tmp_path / "file").touch()
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert compilation.cache_folder() is None
    assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ
