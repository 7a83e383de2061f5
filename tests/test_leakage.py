"""What an encoder has seen is known, travels with it, and is told before it is judged on it again."""

from __future__ import annotations

import gzip
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Answer, Command
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure
from testing import QUIET, TINY, compounds, moved, other_cell, supercell

from datamodules import space_groups
from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.fingerprints import Seen
from datamodules.properties import Property
from datamodules.store import CrystalStore, write_store
from datamodules.synonyms import same_quantity
from foundation.checkpoint import find_members, load_checkpoint
from foundation.manifest import read_seen, rebuild, save_seen

SHORT = [*QUIET, "--trainer.max_epochs", "1"]


def store_of(path: Path, crystals: list[Crystal], name: str = "gv", value: float = 1.0) -> Path:
    """A store whose crystals all carry one label; without merging, so that twins stay apart."""
    values = value + 0.1 * np.arange(len(crystals))
    write_store(path, crystals, {name: values}, [Property(name)], source_ids=[[f"s:{c.id}"] for c in crystals])
    return path


def seen_in(store: Path, name: str = "gv") -> Seen:
    opened = CrystalStore.open(store)
    return Seen.of(opened, np.arange(len(opened)), [name], ~np.isnan(opened.labels([name])))


def look_up(seen: Seen, path: Path, crystals: list[Crystal]) -> tuple[list[bool], list[bool]]:
    store = CrystalStore.open(store_of(path, crystals))
    by_structure, by_formula = seen.look_up(store, np.arange(len(crystals)))
    return by_structure.any(axis=1).tolist(), by_formula.any(axis=1).tolist()


def scaled(crystal: Crystal, volume: float) -> Crystal:
    return replace(crystal, lattice=crystal.lattice * volume ** (1 / 3))


@pytest.fixture
def perovskite() -> Crystal:
    """Cubic, so that its space group does not hang on a hair."""
    cubic = 3.9 * np.eye(3)
    coords = np.array([(0, 0, 0), (0.5, 0.5, 0.5), (0.5, 0.5, 0), (0.5, 0, 0.5), (0, 0.5, 0.5)])
    return Crystal(cubic, coords, np.array([38, 22, 8, 8, 8]), "SrTiO3")


def test_a_crystal_is_seen_in_every_setting_and_told_from_others(perovskite: Crystal, tmp_path: Path) -> None:
    seen = seen_in(store_of(tmp_path / "old", [perovskite]))
    same = [perovskite, supercell(perovskite, (2, 1, 2)), other_cell(perovskite), moved(perovskite, 1e-4)]
    same += [scaled(perovskite, 1.009), scaled(perovskite, 0.992)]
    assert look_up(seen, tmp_path / "same", same) == ([True] * 6, [True] * 6)
    tetragonal = replace(perovskite, lattice=perovskite.lattice @ np.diag([0.96, 0.96, 1 / 0.96**2]))
    formula_only = [scaled(perovskite, 1.011), scaled(perovskite, 0.98), tetragonal]
    assert look_up(seen, tmp_path / "formula", formula_only) == ([False] * 3, [True] * 3)
    barium = replace(perovskite, numbers=np.array([56, 22, 8, 8, 8]))
    assert look_up(seen, tmp_path / "other", [barium]) == ([False], [False])


@pytest.mark.parametrize("offset", np.linspace(0, 0.02, 9))
def test_no_volume_stands_at_an_edge(perovskite: Crystal, tmp_path: Path, offset: float) -> None:
    """The tolerance is the same wherever a volume lies: it is compared, not rounded to a bin."""
    start = scaled(perovskite, 1 + offset)
    seen = seen_in(store_of(tmp_path / "old", [start]))
    others = [scaled(start, factor) for factor in (0.9905, 1.0095, 0.988, 1.012)]
    assert look_up(seen, tmp_path / "new", others)[0] == [True, True, False, False]


def test_crystals_without_a_space_group_are_seen_by_formula_only(tmp_path: Path) -> None:
    overlapping = Crystal(3 * np.eye(3), np.zeros((2, 3)), np.array([1, 1]))
    seen = seen_in(store_of(tmp_path / "old", [overlapping]))
    assert look_up(seen, tmp_path / "new", [overlapping]) == ([False], [True])


def test_joined_manifests_know_what_each_knew(perovskite: Crystal, tmp_path: Path) -> None:
    barium = replace(perovskite, numbers=np.array([56, 22, 8, 8, 8]))
    one = seen_in(store_of(tmp_path / "one", [perovskite, barium]))
    two = seen_in(store_of(tmp_path / "two", [supercell(perovskite)], "band_gap"), "band_gap")
    both = Seen.joined([one, two])
    assert (len(both), both.counts, both.complete) == (2, {"gv": 2, "band_gap": 1}, True)
    store = CrystalStore.open(tmp_path / "one")
    assert both.look_up(store, np.arange(2))[0].tolist() == [[True, True], [True, False]]
    assert not Seen.joined([both, Seen.nothing(complete=False)]).complete
    assert len(Seen.joined([Seen.nothing(), Seen.nothing()])) == 0


def test_a_manifest_is_small_and_comes_back_from_a_file(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    count = 20_001
    seen = Seen(
        ("band_gap", "e above hull"),
        np.sort(random.integers(-(2**62), 2**62, count)),
        random.integers(1, 231, count).astype(np.uint8),
        random.integers(-3000, 3000, count).astype(np.int16),
        random.random((count, 2)) < 0.3,
        complete=False,
    )
    save_seen(tmp_path, seen)
    again = read_seen(tmp_path)
    assert (again.names, again.complete, again.counts) == (seen.names, False, seen.counts)
    for name in ("formula", "space_group", "log_volume", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(seen, name))
    assert (tmp_path / "seen.safetensors").stat().st_size < 12 * count
    with pytest.raises(ValueError, match="different lengths"):
        Seen.from_arrays({**seen.arrays(), "space_group": seen.space_group[:-1]})
    with pytest.raises(ValueError, match="log_volume"):
        Seen.from_arrays({name: array for name, array in seen.arrays().items() if name != "log_volume"})


def test_space_groups_are_found_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = CrystalStore.open(store_of(tmp_path / "store", compounds(6)))
    first = space_groups.space_groups_of(store, np.array([4, 1]))
    asked: list[int] = []
    monkeypatch.setattr(space_groups, "space_groups", lambda crystals, workers: asked.append(len(crystals)) or [7])
    found = space_groups.space_groups_of(CrystalStore.open(tmp_path / "store"), np.array([1, 2, 4, 1]))
    assert asked == [1]
    assert found.tolist() == [first[1], 7, first[0], first[1]]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("poly_total", "dielectric_total"),
        ("DC", "poly_total"),
        ("eij_max", "piezo_voigt"),
        ("pz", "piezo_full"),
        ("log10 G", "G_Voigt"),
        ("log10(G_VRH) (log10(GPa))", "gv"),
        ("G_VRH", "shear_modulus"),
        ("log10 G (GPa)", "elastic_voigt"),
        ("last phdos peak", "ph"),
        ("last_phdos_peak", "last_phonon_dos_peak"),
        ("matbench_phonons", "phdos"),
        ("formation_energy_peratom", "fe"),
        ("gap pbe", "bg"),
        ("is_metal", "band_gap"),
        ("gap expt", "ebg"),
        ("hardness (GPa)", "Hardness"),
    ],
)
def test_one_quantity_has_many_names(one: str, other: str) -> None:
    assert same_quantity(one, other)
    assert same_quantity(other, one)


@pytest.mark.parametrize(
    ("one", "other"),
    [("band_gap", "ebg"), ("fe", "e_above_hull"), ("gv", "band_gap"), ("hardness", "density"), ("ph", "pz")],
)
def test_other_quantities_have_other_names(one: str, other: str) -> None:
    assert not same_quantity(one, other)


@pytest.mark.parametrize(
    ("target", "sets"),
    [
        ("ph", {"matbench_phonons": ["last_phdos_peak"], "phonon_dos_petretto": ["phdos"]}),
        ("dc", {"dielectric_petousis2017": ["poly_total"], "becs_dielectric_abinit": ["dielectric_electronic"]}),
        ("pz", {"piezo_dejong2015": ["piezo_full", "piezo_voigt", "eij_max"]}),
        ("gv", {"mp_multi": ["G_Voigt", "K_Voigt"], "elastic_mp": ["G_Voigt", "elastic_full", "elastic_voigt"]}),
        ("fe", {"mp_multi": ["formation_energy_per_atom"], "perov_5_half": ["heat_all", "heat_ref"]}),
    ],
)
def test_real_sets_that_carry_a_target_are_known(shared_data: Path, target: str, sets: dict[str, list[str]]) -> None:
    for folder, names in sets.items():
        carried: set[str] = set()
        with gzip.open(shared_data / folder / "data.jsonl.gz", "rt") as file:
            for line in file:
                carried |= json.loads(line)["labels"].keys()
        assert set(names) <= {name for name in carried if same_quantity(name, target)}


# The commands.


@pytest.fixture(scope="module")
def sheared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[Crystal]]:
    """A run pretrained on band gaps and ``G_VRH`` of crystals, and its folder."""
    from foundation.cli import main

    folder = tmp_path_factory.mktemp("sheared")
    crystals = compounds(40, seed=5)
    values = np.linspace(1.0, 5.0, 40)
    gaps = np.where(np.arange(40) % 2 == 0, values, np.nan)
    store = folder / "store"
    write_store(
        store, crystals, {"G_VRH": values, "band_gap": gaps}, [Property("G_VRH", "GPa"), Property("band_gap", "eV")]
    )
    words = ["pretrain", "--data.store", str(store), "--data.properties", "G_VRH,band_gap", *TINY, *SHORT]
    assert main([*words, "--out", str(folder / "run")]) == 0
    return folder / "run", store, crystals


@pytest.fixture
def target(sheared: tuple[Path, Path, list[Crystal]], tmp_path: Path) -> Path:
    """30 new crystals with log10 of a shear modulus, of which some stand in the lists above in another cell.

    Tests: new crystals n0 to n5, and two that the encoder has trained on, as they are and at another volume.
    """
    run, store, crystals = sheared
    card_seen = load_checkpoint(find_members(str(run))[0]).seen
    known = [c for c, one in zip(crystals, was_seen(card_seen, store), strict=True) if one]
    fresh = [replace(c, id=f"n{i}") for i, c in enumerate(unlike(compounds(120, seed=77), crystals)[:18])]
    twin = replace(other_cell(supercell(known[0])), id="twin")
    relaxed = replace(scaled(known[1], 1.2), id="relaxed")
    validates = replace(supercell(known[2]), id="validates")
    trains = replace(other_cell(known[3]), id="trains")
    store_of(tmp_path / "target", [*fresh, twin, relaxed, validates, trains], "gv")
    lists = {
        "test": [*(f"n{i}" for i in range(6)), "twin", "relaxed"],
        "trial1": {"10": ["trains", *(f"n{i}" for i in range(6, 14)), "validates"]},
    }
    (tmp_path / "s.json").write_text(json.dumps(lists))
    return tmp_path / "target"


def was_seen(seen: Seen, store: Path) -> list[bool]:
    opened = CrystalStore.open(store)
    return seen.look_up(opened, np.arange(len(opened)))[0].any(axis=1).tolist()


def unlike(crystals: list[Crystal], others: list[Crystal]) -> list[Crystal]:
    """Those whose elements are those of no other."""
    taken = {tuple(sorted(set(c.numbers.tolist()))) for c in others}
    return [c for c in crystals if tuple(sorted(set(c.numbers.tolist()))) not in taken]


def adapt(foundation: Command, target: Path, run: Path, *more: object) -> Answer:
    words = ["adapt", "--pretrained", run, "--data.store", target, "--property", "gv", "--strategy", "linear_probe"]
    lists = ["--data.splits", target.parent / "s.json", "--train-size", 10]
    return foundation(*words, *lists, *SHORT, "--out", target.parent / "run", *more)


def metrics(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return content


def test_adapt_tells_what_has_leaked(foundation: Command, sheared: Any, target: Path) -> None:
    answer = adapt(foundation, target, sheared[0])
    assert answer.code == 0, answer.err
    report = metrics(target.parent / "run")["leakage"]
    assert (report["mode"], report["manifest"]) == ("warn", "complete")
    found = report["properties"]["gv"]
    assert (found["same_quantity"], found["other_quantity"]) == (["G_VRH"], ["band_gap"])
    parts = found["parts"]
    assert {part: parts[part]["crystals"] for part in parts} == {"train": 9, "val": 1, "test": 8}
    assert parts["train"]["same_quantity"] == {"structure": 1, "formula": 1}
    assert parts["val"]["same_quantity"] == {"structure": 1, "formula": 1}
    assert parts["test"]["same_quantity"] == {"structure": 1, "formula": 2}
    assert "leakage: gv: seen with this quantity (G_VRH) by formula (by structure)" in answer.err
    assert "test 2 of 8 (1)" in answer.err
    assert "warning: leakage: the encoder has seen 1 val and 2 test labels" in answer.err
    assert metrics(target.parent / "run")["test"]["gv"]["count"] == 8


def test_exclude_leaves_out_what_has_leaked(foundation: Command, sheared: Any, target: Path) -> None:
    answer = adapt(foundation, target, sheared[0], "--leakage", "exclude", "--seeds", 2)
    assert answer.code == 0, answer.err
    whole = metrics(target.parent / "run")
    assert whole["leakage"]["left_out"] == {"val": 1, "test": 2}
    assert (whole["test"]["gv"]["count"], whole["test"]["gv"]["crystals"]) == (6, 6)
    assert metrics(target.parent / "run" / "seed1")["leakage"] == whole["leakage"]
    card = load_checkpoint(target.parent / "run" / "seed0" / "checkpoints" / "last.ckpt").card
    assert card["data"]["split"]["test"] == 6
    assert "left out 1 val and 2 test labels" in card["data"]["split"]["notes"][-1]


def test_error_writes_nothing(foundation: Command, sheared: Any, target: Path) -> None:
    answer = adapt(foundation, target, sheared[0], "--leakage", "error")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith("foundation: error: --leakage error: ")
    assert "1 val and 2 test labels" in answer.err
    assert not (target.parent / "run").exists()


def test_another_quantity_is_no_leak(foundation: Command, sheared: Any, target: Path) -> None:
    """The same crystals with hardness labels: told, but neither excluded nor refused."""
    shutil.rmtree(target)
    crystals = [replace(c, id=str(i)) for i, c in enumerate(sheared[2][:30])]
    store_of(target, crystals, "hardness")
    words = ["adapt", "--pretrained", sheared[0], "--data.store", target, "--property", "hardness", *SHORT]
    out = ["--strategy", "linear_probe", "--out", target.parent / "run"]
    answer = foundation(*words, *out, "--leakage", "error")
    assert answer.code == 0, answer.err
    assert "seen with other labels (G_VRH, band_gap)" in answer.err
    test = metrics(target.parent / "run")["leakage"]["properties"]["hardness"]["parts"]["test"]
    assert test["same_quantity"] == {"structure": 0, "formula": 0}
    assert test["other_quantity"]["structure"] > 0
    assert test["labels"]["G_VRH"]["structure"] >= test["labels"]["band_gap"]["structure"]


def test_fresh_weights_have_seen_nothing(foundation: Command, sheared: Any, target: Path) -> None:
    words = ["adapt", "--data.store", target, "--property", "gv", "--strategy", "from_scratch", *TINY, *SHORT]
    answer = foundation(*words, "--leakage", "error", "--out", target.parent / "run")
    assert answer.code == 0, answer.err
    assert metrics(target.parent / "run")["leakage"]["manifest"] == "fresh weights"
    seen = load_checkpoint(find_members(str(target.parent / "run"))[0]).seen
    assert (seen.names, seen.complete) == (("gv",), True)


def test_a_manifest_is_inherited(foundation: Command, sheared: Any, target: Path) -> None:
    """After an adaptation to another quantity the shear moduli of the pretraining still count."""
    assert adapt(foundation, target, sheared[0]).code == 0
    adapted = load_checkpoint(find_members(str(target.parent / "run"))[0]).seen
    first = load_checkpoint(find_members(str(sheared[0]))[0]).seen
    assert adapted.counts == {**first.counts, "gv": 10}
    other = store_of(target.parent / "other", sheared[2], "shear_modulus")
    words = [
        "adapt",
        "--pretrained",
        target.parent / "run",
        "--data.store",
        other,
        "--property",
        "shear_modulus",
        *SHORT,
    ]
    answer = foundation(*words, "--strategy", "full", "--leakage", "error", "--out", target.parent / "again")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "has seen" in answer.err


def test_both_forms_carry_the_manifest(foundation: Command, sheared: Any) -> None:
    run, store, _ = sheared
    checkpoint, shared = load_checkpoint(find_members(str(run))[0]), load_checkpoint(run / "model")
    split = checkpoint.card["data"]["split"]
    assert len(checkpoint.seen) == split["train"] + split["val"] == sum(was_seen(checkpoint.seen, store))
    assert checkpoint.seen.names == shared.seen.names == ("G_VRH", "band_gap")
    for name, array in checkpoint.seen.arrays().items():
        np.testing.assert_array_equal(array, shared.seen.arrays()[name])
    answer = foundation("inspect", run)
    assert f"fingerprints of {len(checkpoint.seen)} crystals it has seen: G_VRH {len(checkpoint.seen)}" in answer.out


def without_manifest(run: Path, place: Path) -> Path:
    content = torch.load(find_members(str(run))[0], weights_only=True)
    del content["seen"]
    torch.save(content, place)
    return place


def test_an_old_checkpoint_has_seen_nobody_knows_what(foundation: Command, sheared: Any, target: Path) -> None:
    old = without_manifest(sheared[0], target.parent / "old.ckpt")
    answer = adapt(foundation, target, old)
    assert answer.code == 0, answer.err
    assert answer.err.count("is unknown") == 1
    assert "no train" not in answer.err
    assert metrics(target.parent / "run")["leakage"] | {"encoder": ""} == {
        "encoder": "",
        "mode": "warn",
        "manifest": "unknown",
        "properties": {},
    }
    for mode in ("exclude", "error"):
        refused = adapt(foundation, target, old, "--leakage", mode, "--overwrite", "true")
        assert (refused.code, refused.err.count("\n")) == (2, 1)
        assert "unknown" in refused.err
    assert "unknown" in foundation("inspect", old).out
    # What comes from it knows its own crystals, and that they may not be all.
    again = adapt(foundation, target, target.parent / "run", "--out", target.parent / "again")
    assert "may have seen more than it knows of" in again.err
    assert "warning: leakage: the encoder has seen 1 val" in again.err
    assert metrics(target.parent / "again")["leakage"]["manifest"] == "partial"


@pytest.mark.parametrize("broken", [{"seen": {"formula": torch.zeros(3)}}, {"seen": {"formula": "text"}}, {"seen": 3}])
def test_a_torn_manifest(foundation: Command, sheared: Any, tmp_path: Path, broken: dict[str, Any]) -> None:
    content = torch.load(find_members(str(sheared[0]))[0], weights_only=True)
    torch.save(content | broken, tmp_path / "torn.ckpt")
    answer = foundation("inspect", tmp_path / "torn.ckpt")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "torn.ckpt" in answer.err
    folder = shutil.copytree(sheared[0] / "model", tmp_path / "model")
    (folder / "seen.safetensors").write_bytes((folder / "seen.safetensors").read_bytes()[:-20])
    assert foundation("inspect", folder).code == 2


def test_evaluate_judges_on_what_was_not_seen(foundation: Command, sheared: Any, tmp_path: Path) -> None:
    run, store, _ = sheared
    card = load_checkpoint(find_members(str(run))[0]).card["data"]["split"]
    words = ["evaluate", run, "--data.store", store, "--out", tmp_path / "judged"]
    answer = foundation(*words, "--leakage", "error")
    assert answer.code == 0, answer.err
    assert "leakage: G_VRH: no test crystal or formula seen with this quantity" in answer.err
    answer = foundation(*words, "--split", "all", "--leakage", "exclude")
    assert answer.code == 0, answer.err
    judged = metrics(tmp_path / "judged")
    assert judged["all"]["G_VRH"]["count"] == card["test"]
    assert judged["leakage"]["left_out"]["train"] > judged["leakage"]["left_out"]["val"] > 0
    answer = foundation(*words, "--split", "val", "--leakage", "exclude")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "every val label" in answer.err


def test_a_manifest_is_rebuilt_from_the_card(sheared: Any, target: Path) -> None:
    run, store, _ = sheared
    folder = shutil.copytree(run / "model", target.parent / "model")
    (folder / "seen.safetensors").unlink()
    moved_store = shutil.copytree(store, target.parent / "elsewhere")
    rebuild(str(folder), str(moved_store))
    assert (folder / "seen.safetensors").read_bytes() == (run / "model" / "seen.safetensors").read_bytes()
    with pytest.raises(InputError, match="not the store"):
        rebuild(str(folder), str(target))
    card = json.loads((folder / "card.json").read_text())
    card["data"]["labels"]["band_gap"] += 1
    (folder / "card.json").write_text(json.dumps(card))
    with pytest.raises(InputError, match="other counts"):
        rebuild(str(folder), str(moved_store))


def test_the_shipped_encoder_knows_what_it_has_seen() -> None:
    checkpoint = load_checkpoint(find_members("mp-small")[0])
    split, labels = checkpoint.card["data"]["split"], checkpoint.card["data"]["labels"]
    assert checkpoint.seen.complete
    assert split["train"] < len(checkpoint.seen) <= split["train"] + split["val"]
    for name, count in labels.items():
        assert 0.98 * count < checkpoint.seen.counts[name] <= count + split["val"]
    assert (find_members("mp-small")[0] / "seen.safetensors").stat().st_size < 500_000


# Real crystals: the rule against pymatgen's StructureMatcher.


def real(path: Path, count: int) -> list[Crystal]:
    from datamodules.readers import read_source

    records = []
    for record in read_source(path):
        if record.crystal is not None and len(record.crystal) <= 12:
            records.append(record.crystal)
        if len(records) == count:
            break
    return records


def test_fingerprints_agree_with_pymatgen_on_real_crystals(shared_data: Path, tmp_path: Path) -> None:
    """Of pairs with one formula, one in each of two sets; the whole measurement stands in the log."""
    old = real(shared_data / "mp_multi" / "data.jsonl.gz", 2500)
    new = real(shared_data / "devi2024" / "ph.json.gz", 1200)
    stores = [CrystalStore.open(store_of(tmp_path / name, some)) for name, some in (("old", old), ("new", new))]
    rows: dict[str, list[int]] = {}
    for row, formula in enumerate(stores[0].formulas):
        rows.setdefault(formula, []).append(row)
    pairs = [(row, other) for row, formula in enumerate(stores[1].formulas) for other in rows.get(formula, [])][:60]
    assert len(pairs) == 60
    matched = equal = both = 0
    for row, other in pairs:
        seen = Seen.of(stores[0], np.array([other]), ["gv"], np.ones((1, 1), dtype=bool))
        ours = bool(seen.look_up(stores[1], np.array([row]))[0].any())
        theirs = StructureMatcher().fit(structure(new[row]), structure(old[other]))
        matched, equal, both = matched + ours, equal + theirs, both + (ours and theirs)
    assert both > 10
    assert both >= 0.95 * matched  # nearly every match is one


def structure(crystal: Crystal) -> Structure:
    return Structure(crystal.lattice, crystal.numbers, crystal.frac_coords)
