"""What a study is made of: its configuration, grid, sources, scale and locks."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from conftest import Command
from studies import STUDY, write_records, write_study
from testing import compounds

from datamodules.errors import InputError
from datamodules.store import CrystalStore
from datamodules.subset import write_subset
from foundation.commands.study import parser
from foundation.paths import config_path
from foundation.study.config import Recipe, load_config
from foundation.study.folder import TargetFolder
from foundation.study.grid import Cell, parse_cells, share
from foundation.study.locks import Busy, held, make_once
from foundation.study.scale import scaled_per_unit
from foundation.study.sources import Trained, parse_source
from foundation.study.summary import read_reference


def test_smaller_sets_are_parts_of_larger_ones(tiny_store: Path, tmp_path: Path) -> None:
    store = CrystalStore.open(tiny_store)
    sizes = (10, 30, None)
    for size in sizes:
        write_subset(store, tmp_path / f"{size}", ["band_gap"], size=size)
    small, large, whole = (CrystalStore.open(tmp_path / f"{size}") for size in sizes)
    assert set(small.ids) < set(large.ids) < set(whole.ids) < set(store.ids)
    assert (len(small), len(large)) == (10, 30)
    place = {id: row for row, id in enumerate(store.ids)}
    rows = [place[id] for id in large.ids]
    np.testing.assert_array_equal(large.labels(["band_gap"]), store.labels(["band_gap"])[rows])
    assert np.isfinite(whole.labels(["band_gap"])).all()
    with pytest.raises(InputError, match="100 crystals are asked for"):
        write_subset(store, tmp_path / "100", ["band_gap"], size=100)


@pytest.mark.parametrize(
    ("name", "outside", "properties", "size", "folder"),
    [
        ("joint", True, ["band_gap", "volume"], None, "joint"),
        ("joint@1k", True, ["band_gap", "volume"], 1000, "joint@1k"),
        ("joint_without_target@50", False, ["flat", "stiffness"], 50, "joint_without_gap@50"),
        ("volume", True, ["volume"], None, "volume"),
        ("flat@7", False, ["flat"], 7, "flat@7"),
    ],
)
def test_what_a_source_is_made_of(
    sets: Path, tmp_path: Path, name: str, outside: bool, properties: list[str], size: int | None, folder: str
) -> None:
    config = load_config(str(write_study(tmp_path / "study.yaml")))
    assert parse_source(name, "gap", config, TargetFolder(sets), {}) == Trained(folder, outside, properties, size)
    alone = shutil.copytree(sets, tmp_path / "elsewhere" / "sets")  # without the files of pretraining beside it
    if name.startswith("joint"):
        found = parse_source(name, "gap", config, TargetFolder(alone), {})
        assert isinstance(found, Trained)
        assert (found.outside, found.properties) == (False, ["flat", "stiffness"])


@pytest.mark.parametrize("parts", [1, 2, 3, 7])
def test_shares_have_every_cell_once(parts: int) -> None:
    cells = [Cell("gap", size, "trial1", 0, "none", "median") for size in range(5)]
    shares = [share(cells, part, parts) for part in range(1, parts + 1)]
    assert sorted((cell for part in shares for cell in part), key=lambda cell: cell.size) == cells
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def keys_of(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all keys that the study knows; names of properties, strategies and sizes are free."""
    if not isinstance(content, dict):
        return []
    free = path in (("properties",), ("pretraining", "recipe")) or (path[:1] == ("recipes",) and len(path) == 2)
    found = [] if free else [(*path, key) for key in content]
    return found + [deeper for key, value in content.items() for deeper in keys_of(value, (*path, key))]


@pytest.mark.parametrize("name", ["study/devi2024.yaml", None])
def test_a_typo_in_the_configuration_is_refused_by_name(
    foundation: Command, sets: Path, tmp_path: Path, name: str | None
) -> None:
    content = yaml.safe_load(config_path(name).read_text()) if name else STUDY
    paths = keys_of(content)
    if name:
        paths = [path for path in paths if len(path) < 3]  # those of options take a parser each
    for path in paths:
        changed = yaml.safe_load(yaml.safe_dump(content))
        place = changed
        for key in path[:-1]:
            place = place[key]
        place[f"{path[-1]}x"] = place.pop(path[-1])
        file = tmp_path / "typo.yaml"
        file.write_text(yaml.safe_dump(changed))
        words = ["--data", sets, "--cells", "target=gap;size=10", "--out", tmp_path / "out"]
        answer = foundation("study", "--config", file, *words)
        assert answer.code == 2, f"{path} was accepted"
        assert f"{path[-1]}x" in answer.err, answer.err
        assert answer.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_the_shipped_study() -> None:
    config = load_config("configs/study/devi2024.yaml")
    line = config.path.read_text().splitlines()[0]
    args = parser().parse_args(line.removeprefix("# foundation study ").split())
    assert args.config == "configs/study/devi2024.yaml"
    assert config.recipe("layer_decay").options(200)["trainer.max_epochs"] == 60
    assert config.recipe("layer_decay").options(201)["trainer.max_epochs"] == 40
    assert "G_Voigt" in config.same("gv")
    assert config.same("bg") == {"bg"}
    reference = read_reference(config.path.parent / str(config.reference))
    assert set(config.axes.target) <= set(reference.property)


def test_recipes_go_by_size() -> None:
    recipe = Recipe.parse({100: {"a": 1}, 10: {"a": 2}}, "here")
    assert [recipe.options(size)["a"] for size in (3, 10, 11, 100)] == [2, 2, 1, 1]
    with pytest.raises(InputError, match="no recipe for 101 crystals"):
        recipe.options(101)
    with pytest.raises(InputError, match=r"here\.all: a size is a number"):
        Recipe.parse({"all": {}}, "here")


def test_cells_are_parsed() -> None:
    assert parse_cells(" target = ph, dc ;size=100;") == {"target": ["ph", "dc"], "size": ["100"]}


def test_the_scale_of_a_target(tmp_path: Path) -> None:
    crystals, values = compounds(5), np.array([1.0, 2.0, 4.0, 5.0, 11.0])
    file = tmp_path / "p.json.gz"
    write_records(file, crystals, values, target=-0.3 * values + 2.0)
    assert scaled_per_unit(file, values) == pytest.approx(0.3)
    write_records(file, crystals, values)
    assert scaled_per_unit(file, values) == pytest.approx(0.2)
    write_records(file, crystals, values, target=np.log(values))  # not a matter of units
    assert scaled_per_unit(file, values) == pytest.approx(0.2)


def test_a_lock_is_held_by_one_and_taken_over_from_the_dead(tmp_path: Path) -> None:
    lock = tmp_path / "a.lock"
    with held(lock):
        with pytest.raises(Busy, match=str(os.getpid())), held(lock):
            pass
        assert lock.exists()
    assert not lock.exists()
    process = multiprocessing.get_context("spawn").Process(target=int)
    process.start()
    process.join()
    dead = {"pid": process.pid, "host": socket.gethostname(), "started": "1"}
    lock.write_text(json.dumps(dead))
    with pytest.raises(Busy), held(lock, take_over=False):
        pass
    with held(lock):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    lock.write_text(json.dumps(dead | {"pid": os.getpid()}))  # the number of the dead, used again
    with held(lock):
        pass
    lock.write_text(json.dumps(dead | {"host": "elsewhere"}))
    with pytest.raises(Busy, match="elsewhere"), held(lock):
        pass


def test_a_thing_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> None:
        made.append(1)
        (tmp_path / "thing").mkdir(exist_ok=True)

    for job in ({"a": 1}, {"a": 1}, {"a": 2}, {"a": 2}):
        make_once(tmp_path / "thing", job, make)
    assert len(made) == 2
    shutil.rmtree(tmp_path / "thing")
    make_once(tmp_path / "thing", {"a": 2}, make)
    assert len(made) == 3
    with held(tmp_path / "thing.lock"), pytest.raises(Busy):
        make_once(tmp_path / "thing", {"a": 3}, make)
