"""The files that set the project up agree with one another and with what is in the tree."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest

from datamodules.errors import InputError
from foundation.paths import config_path, shipped_configs

ROOT = Path(__file__).resolve().parent.parent
PINS = [
    line
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def canonical(requirement: str) -> str:
    """The normalized name that a requirement starts with."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_constraints_are_exact_pins_without_local_suffix() -> None:
    assert [pin for pin in PINS if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin)] == []
    names = [canonical(pin) for pin in PINS]
    assert len(names) == len(set(names))


def test_torch_pin_is_within_the_supported_range() -> None:
    (version,) = [pin.split("==")[1] for pin in PINS if canonical(pin) == "torch"]
    assert (2, 6) <= tuple(int(part) for part in version.split(".")[:2]) < (2, 14)


def test_every_requirement_is_pinned(pyproject: dict[str, Any]) -> None:
    required = [*pyproject["project"]["dependencies"], *pyproject["project"]["optional-dependencies"]["dev"]]
    assert {canonical(requirement) for requirement in required} <= {canonical(pin) for pin in PINS}


def test_every_folder_with_modules_is_a_listed_package(pyproject: dict[str, Any]) -> None:
    found = {
        path.parent.relative_to(ROOT).as_posix().replace("/", ".")
        for package in ("datamodules", "heads", "foundation")
        for path in (ROOT / package).rglob("*.py")
    }
    assert found | {"foundation.configs"} == set(pyproject["tool"]["setuptools"]["packages"])


def test_every_config_ships(pyproject: dict[str, Any]) -> None:
    globs = pyproject["tool"]["setuptools"]["package-data"]["foundation.configs"]
    folder = ROOT / pyproject["tool"]["setuptools"]["package-dir"]["foundation.configs"]
    shipped = {path for glob in globs for path in folder.glob(glob)}
    assert {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts} == shipped


def test_every_pretrained_file_ships(pyproject: dict[str, Any]) -> None:
    folder = ROOT / "foundation"
    globs = pyproject["tool"]["setuptools"]["package-data"]["foundation"]
    shipped = {path for glob in globs for path in folder.glob(glob)}
    assert {path for path in (folder / "pretrained").rglob("*") if path.is_file() and path.suffix != ".py"} <= shipped


def test_the_makefile_uses_what_pyproject_declares(pyproject: dict[str, Any]) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert f"PACKAGES := {' '.join(pyproject['tool']['mypy']['packages'])}\n" in makefile
    assert "-c constraints.txt -e '.[dev]'" in makefile
    low, high = re.findall(r"3\.\d+", pyproject["project"]["requires-python"])
    condition = f"({low.replace('.', ', ')}) <= sys.version_info < ({high.replace('.', ', ')})"
    assert condition in makefile
    assert set(re.findall(r"\$\(BIN\)/(\w+)", makefile)) >= set(pyproject["project"]["scripts"])


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
@pytest.mark.parametrize("target", ["benchmark", "benchmark-full"])
@pytest.mark.parametrize(("given", "threads"), [({}, "1"), ({"OMP_NUM_THREADS": "3"}, "3")])
def test_make_benchmarks_on_one_thread_unless_told(
    tmp_path: Path, target: str, given: dict[str, str], threads: str
) -> None:
    program, installed = tmp_path / "foundation", tmp_path / "installed"
    program.write_text('#!/bin/sh\necho "threads=$OMP_NUM_THREADS"\n')
    program.chmod(0o755)
    installed.touch()
    env = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"} | given
    command = ["make", "-s", "-C", str(ROOT), target, f"BIN={tmp_path}", f"INSTALLED={installed}"]
    assert subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout == f"threads={threads}\n"


def test_continuous_integration_runs_the_tests() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111
    assert "make test" in script.read_text(encoding="utf-8")


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory beside a set of shipped files: pretrain.yaml and data/mp.yaml."""
    shipped = tmp_path / "shipped"
    for name in ("pretrain.yaml", "data/mp.yaml"):
        path = shipped / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a: 1\n", encoding="utf-8")
    monkeypatch.setattr("foundation.paths.shipped_configs", lambda: shipped)
    (tmp_path / "outside.yaml").write_text("a: 3\n", encoding="utf-8")
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return shipped


@pytest.mark.parametrize("prefix", ["", "configs/"])
@pytest.mark.parametrize("name", ["pretrain.yaml", "data/mp.yaml"])
def test_a_shipped_config_is_found_from_anywhere(tree: Path, prefix: str, name: str) -> None:
    assert config_path(prefix + name) == tree / name


def test_a_file_here_wins_over_the_shipped_one(tree: Path) -> None:
    Path("pretrain.yaml").write_text("a: 2\n", encoding="utf-8")
    assert config_path("pretrain.yaml") == Path("pretrain.yaml")
    assert config_path("configs/pretrain.yaml") == tree / "pretrain.yaml"


@pytest.mark.parametrize("name", ["pretrian.yaml", "data/../../outside.yaml", "/nowhere/pretrain.yaml", "configs", ""])
def test_an_unknown_config_is_one_line_that_lists_what_ships(tree: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"data/mp\.yaml, pretrain\.yaml$") as caught:
        config_path(name)
    assert "\n" not in str(caught.value)


def test_the_shipped_folder_of_this_checkout() -> None:
    assert shipped_configs().is_dir()
