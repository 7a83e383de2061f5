"""Every configuration file parses and builds by its own first line; a typo in one is refused by name."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import Command

from datamodules.datamodule import CrystalDataModule
from foundation.commands import adapt
from foundation.paths import shipped_configs
from foundation.training.module import MultiTaskModule
from foundation.training.run import RunSettings

CONFIGS = sorted(
    path.relative_to(shipped_configs()).as_posix()
    for path in shipped_configs().rglob("*.yaml")
    if path.parent.name != "study"  # they have a vocabulary of their own, see test_study.py
)
every_config = pytest.mark.parametrize("name", CONFIGS)


class Built(list[tuple[MultiTaskModule, CrystalDataModule, RunSettings]]):
    """What would have been trained."""


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, tiny_store: Path, tmp_path: Path) -> Built:
    """Let commands do everything but train, in a folder where the store that was pretrained on stands."""
    made = Built()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stores").mkdir()
    (tmp_path / "stores" / "mp").symlink_to(tiny_store)

    def keep(module: Any, data: Any, settings: Any, *_: Any) -> dict[str, Any]:
        made.append((module, data, settings))
        return {}

    monkeypatch.setattr("foundation.commands.pretrain.train", keep)
    monkeypatch.setattr("foundation.commands.adapt.train", keep)
    # Whether auto takes folds hangs on the time that it found; folds need models that have trained.
    monkeypatch.setattr("foundation.commands.adapt._adapt_folds", adapt._adapt_once)
    return made


def first_line(name: str, store: Path, run: Path) -> list[str]:
    """The command in the first line of a file, its placeholders filled in."""
    line = (shipped_configs() / name).read_text().splitlines()[0]
    assert line.startswith("# foundation "), f"{name}: the first line is not the command that runs it"
    filled = {"STORE": str(store), "NAME": "shear_modulus", "mp-small": str(run), "10m": "5s"}
    return [filled.get(word, word) for word in shlex.split(line.removeprefix("# foundation "))]


def store_of(name: str, tiny_store: Path, tensor_store: Path) -> Path:
    """The store that has the labels which a file asks for."""
    content = yaml.safe_load((shipped_configs() / name).read_text())
    shaped = "property" in content or "elastic_tensor" in content.get("heads", {})
    return tensor_store if shaped else tiny_store


def with_file(words: list[str], name: str, file: Path) -> list[str]:
    """The command with another file in the place of the configuration file of this name."""
    changed = [words[0], *(str(file) if word in (f"configs/{name}", Path(name).stem) else word for word in words[1:])]
    assert changed != words, f"{name}: the command in its first line does not use it"
    return changed


@every_config
def test_it_builds_what_its_first_line_says(
    name: str,
    foundation: Command,
    built: Built,
    tiny_store: Path,
    tensor_store: Path,
    tiny_run: Path,
    tmp_path: Path,
) -> None:
    words = first_line(name, store_of(name, tiny_store, tensor_store), tiny_run)
    answer = foundation(*words, "--out", tmp_path / "run", "--wandb", "off")
    assert answer.code == 0, answer.err
    ((module, data, settings),) = built
    assert settings.folder == tmp_path / "run"
    assert set(module.names) <= set(data.store.properties) | {"is_metal"}
    assert set(module.rates) == set(module.encoder.stages())


def keys_of(content: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """Paths of all keys, those of free mappings such as the names of properties left out."""
    if not isinstance(content, dict):
        return []
    found: list[tuple[str, ...]] = []
    for key, value in content.items():
        if path != ("heads",):
            found.append((*path, key))
        if path != ("task_weights",):
            found += keys_of(value, (*path, key))
    return found


@every_config
def test_a_typo_is_refused_by_name_and_nothing_is_written(
    name: str,
    foundation: Command,
    built: Built,
    tiny_store: Path,
    tensor_store: Path,
    tiny_run: Path,
    tmp_path: Path,
) -> None:
    original = (shipped_configs() / name).read_text()
    words = first_line(name, store_of(name, tiny_store, tensor_store), tiny_run)
    keys = keys_of(yaml.safe_load(original))
    assert keys
    for path in keys:
        content = yaml.safe_load(original)
        place = content
        for key in path[:-1]:
            place = place[key]
        place[f"{path[-1]}x"] = place.pop(path[-1])
        file = tmp_path / Path(name).name
        file.write_text(yaml.safe_dump(content))
        answer = foundation(*with_file(words, name, file), "--out", tmp_path / "run", "--wandb", "off")
        assert answer.code == 2, f"{'.'.join(path)}x was accepted"
        assert answer.err.count("\n") == 1
        assert f"{path[-1]}x" in answer.err, answer.err
    assert not built
    assert not (tmp_path / "run").exists()
