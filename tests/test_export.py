"""`foundation export`: a package that predicts what the model predicts, where none of our code can be imported."""

from __future__ import annotations

import csv
import gzip
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Answer, Command
from pymatgen.core import Lattice, Structure
from pymatgen.io.cif import CifWriter
from testing import TINY_ENCODER, batch_of, compounds, random_crystal, rock_salt

from datamodules.batching import build_graphs
from datamodules.crystals import Crystal
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN, Property
from foundation import export
from foundation.checkpoint import FORMAT, FORMAT_VERSION, build_module, find_members, load_checkpoint
from foundation.classical.blended import HEAD, BlendedHead
from foundation.classical.companions import Companions, fit_companions
from foundation.classical.descriptors import describe_graphs
from foundation.exported.model import GraphTensors, PackagedModel
from foundation.inference import Ensemble
from foundation.training.optimization import Optimization
from foundation.training.spec import HeadSpec, ModelSpec

HEADS = {
    "band_gap": HeadSpec("heads.ScalarHead", {}, KNOWN["band_gap"]),
    "energy": HeadSpec(
        "heads.ScalarHead", {"aggregation": "sum", "element_reference": True}, Property("energy", "eV", log=False)
    ),
    "modulus": HeadSpec("heads.ScalarHead", {"hidden": 4}, Property("modulus", "GPa", log=True)),
    "is_metal": HeadSpec("heads.ClassificationHead", {}, KNOWN["is_metal"]),
}
RECIPE = NeighborRecipe()
TOUGHNESS = Property("toughness", "GPa", log=True)


@cache
def companions() -> Companions:
    """Fitted to a property of forty compounds that follows from their volume."""
    crystals = compounds(40)
    features = describe_graphs(build_graphs(crystals, RECIPE), np.arange(40), RECIPE)
    return fit_companions(features, np.array([4000 * len(c) / c.volume for c in crystals]), TOUGHNESS)


def blended() -> HeadSpec:
    """A head that mixes in companions."""
    base = {"class_path": "heads.ScalarHead", "init_args": {}}
    return HeadSpec(HEAD, {"base": base, "recipe": vars(RECIPE), "sizes": companions().sizes}, TOUGHNESS)


# What a package must do without: our packages, and what they need beside torch, numpy and pymatgen.
ABSENT = ("foundation", "datamodules", "heads", "lightning", "e3nn", "torch_geometric", "torchmetrics", "ase", "wandb")
ALONE = f"""
import runpy, sys
sys.modules.update(dict.fromkeys({ABSENT!r}))
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def save(path: Path, heads: dict[str, HeadSpec], seed: int, **encoder: Any) -> Path:
    """A checkpoint of an untrained model whose heads have scales of their own."""
    torch.manual_seed(seed)
    spec = ModelSpec(TINY_ENCODER | encoder, heads)
    module = build_module(spec, Optimization())
    for _, head in module.named_heads():
        plain = head
        if isinstance(head, BlendedHead):
            head.companions, plain = companions(), head.base
            head.weights.copy_(torch.tensor([0.4, 0.3, 0.2, 0.1]))
        for name, buffer in plain.named_buffers():
            buffer.copy_(0.5 + torch.rand_like(buffer) if name != "reference" else torch.randn_like(buffer))
    card = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "spec": spec.as_dict(),
        "optimization": asdict(module.optimization),
        "rates": module.rates,
        "data": {"elements": list(range(1, 84))},
        "pretrained": None,
        "versions": {"torch": str(torch.__version__)},
    }
    path.parent.mkdir(parents=True)
    torch.save({"state_dict": module.state_dict(), "foundation": card}, path)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an ensemble of two models with a head of every kind."""
    folder = tmp_path_factory.mktemp("runs") / "two"
    for seed in range(2):
        heads = {**HEADS, TOUGHNESS.name: blended()}
        save(folder / f"seed{seed}" / "checkpoints" / "last.ckpt", heads, seed, num_blocks=1)
    return folder


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of one model with one block and few heads: quick to compile."""
    heads = {"band_gap": HEADS["band_gap"], TOUGHNESS.name: blended()}
    return save(tmp_path_factory.mktemp("runs") / "one" / "last.ckpt", heads, seed=0, num_blocks=1)


@pytest.fixture(scope="module")
def package(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package of the ensemble."""
    from foundation.cli import main

    out = tmp_path_factory.mktemp("packages") / "two"
    assert main(["export", str(run), "--out", str(out)]) == 0
    return out


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of structures, good and bad."""
    made = tmp_path / "structures"
    (made / "deeper").mkdir(parents=True)
    crystals = [*compounds(4), random_crystal(17)]
    good = [Structure(Lattice(c.lattice), c.numbers.tolist(), c.frac_coords) for c in crystals]
    for index, structure in enumerate(good):
        structure.to(filename=str(made / f"good{index}.cif"))
    good[0].to(filename=str(made / "deeper" / "POSCAR"))
    text = (made / "good0.cif").read_text() + (made / "good1.cif").read_text() + "data_x\n_atom_site_label\n"
    (made / "many.cif.gz").write_bytes(gzip.compress(text.encode()))
    (made / "corrupt.cif").write_text("data_x\n_cell_length_a 5\nloop_\n_atom_site_label\n")
    (made / "torn.cif.gz").write_bytes(gzip.compress(text.encode())[:100])
    disordered = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
    CifWriter(disordered).write_file(made / "disordered.cif")
    Structure(Lattice.cubic(4), ["Na", "Cl"], [[0, 0, 0], [0.01, 0, 0]]).to(filename=str(made / "overlap.cif"))
    Structure(Lattice.cubic(30), ["Na"], [[0, 0, 0]]).to(filename=str(made / "isolated.cif"))
    Structure(Lattice.orthorhombic(9, 30, 30), ["Na"], [[0, 0, 0]]).to(filename=str(made / "chain.cif"))
    Structure(Lattice.cubic(3.2), ["Pu", "O"], [[0, 0, 0], [0.5, 0.5, 0.5]]).to(filename=str(made / "unseen.cif"))
    (made / "beyond.vasp").write_text("RfO\n1\n3.2 0 0\n0 3.2 0\n0 0 3.2\nRf O\n1 1\ndirect\n0 0 0\n0.5 0.5 0.5\n")
    return made


def alone(package: Path, *words: object) -> Answer:
    """Run ``predict.py`` in an isolated interpreter that cannot import our code."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, *map(str, (package / "predict.py", *words))],
        cwd=package.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    return Answer(done.returncode, done.stdout, done.stderr)


def table(path: Path) -> dict[tuple[str, str], dict[str, str]]:
    with path.open(newline="") as file:
        return {(row["path"], row["index"]): row for row in csv.DictReader(file)}


def test_a_package_predicts_what_predict_predicts(
    foundation: Command, run: Path, package: Path, folder: Path, tmp_path: Path
) -> None:
    answer = alone(package, folder, "--out", tmp_path / "theirs.csv")
    assert answer.code == 0, answer.err
    assert foundation("predict", run, folder, "--out", tmp_path / "ours.csv").code == 0
    theirs, ours = table(tmp_path / "theirs.csv"), table(tmp_path / "ours.csv")
    assert theirs.keys() == ours.keys()
    columns = [name for name in next(iter(ours.values())) if name not in ("path", "index", "id", "formula", "status")]
    assert len(columns) == 10  # mean and spread of five properties
    statuses = set()
    for key, row in ours.items():
        assert theirs[key]["status"] == row["status"], key
        statuses.add(row["status"])
        found, expected = ([r[column] for column in columns] for r in (theirs[key], row))
        if "" in expected:
            assert found == expected
        else:  # ours is written with three digits of the spread
            np.testing.assert_allclose(np.array(found, float)[::2], np.array(expected, float)[::2], rtol=1e-5)
            np.testing.assert_allclose(np.array(found, float)[1::2], np.array(expected, float)[1::2], rtol=1e-2)
    assert statuses >= {"ok", "unseen_element", "unsupported_element", "no_neighbours", "disordered", "unreadable"}
    assert f"{sum(row['status'] == 'ok' for row in ours.values())} ok" in answer.out


def test_the_script_s_mistakes(
    package: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def here(*words: object) -> Answer:
        monkeypatch.setattr(sys, "path", list(sys.path))
        monkeypatch.setattr(sys, "argv", [str(word) for word in (package / "predict.py", *words)])
        with pytest.raises(SystemExit) as left:
            runpy.run_path(sys.argv[0], run_name="__main__")
        assert isinstance(left.value.code, int)
        return Answer(left.value.code, *capsys.readouterr())

    for words in ([tmp_path / "nowhere.cif"], [folder, "--out", tmp_path / "nowhere" / "p.csv"]):
        answer = here(*words)
        assert answer.code == 2
        assert "nowhere" in answer.err.splitlines()[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"structures"}
    answer = here(folder / "isolated.cif", "--out", tmp_path / "p.csv")
    assert (answer.code, answer.out) == (1, f"{tmp_path / 'p.csv'}: 1 no_neighbours\n")
    assert [row["status"] for row in table(tmp_path / "p.csv").values()] == ["no_neighbours"]


def test_the_card_says_what_the_package_is(package: Path) -> None:
    card = json.loads((package / "card.json").read_text())
    assert [(prop["name"], prop["unit"]) for prop in card["properties"]] == [
        ("band_gap", "eV"), ("energy", "eV"), ("modulus", "GPa"), ("is_metal", ""), ("toughness", "GPa")
    ]  # fmt: skip
    assert card["program"]["outputs"][:2] == ["band_gap (eV)", "band_gap (eV) spread"]
    assert card["neighbors"] == {"num_neighbors": 12, "shell_width": 0.5, "max_cutoff": 10.0}
    assert card["elements"] == {"seen": list(range(1, 84)), "last": 103}
    assert card["members"] == 2
    assert 0 <= card["checked"]["largest_deviation"] < 1e-5
    assert card["versions"]["exported with"]["torch"] == torch.__version__
    places = {path.relative_to(package).as_posix() for path in package.rglob("*.py")}
    assert {"predict.py", "crystal_graphs/graph.py"} <= places
    assert str(export._SCRIPT.parents[2]).encode() not in (package / "model.pt2").read_bytes()


BATCHES: dict[str, list[Crystal]] = {
    "an atom without edges": [Crystal(30 * np.eye(3), np.zeros((1, 3)), np.array([11]))],
    "an atom with two edges": [Crystal(np.diag([9.0, 30, 30]), np.zeros((1, 3)), np.array([11]))],
    "an atom": [Crystal(2.6 * np.eye(3), np.zeros((1, 3)), np.array([26]))],
    "a crystal": [rock_salt()],
    "two atoms": 2 * [Crystal(2.6 * np.eye(3), np.zeros((1, 3)), np.array([26]))],
    "many crystals": compounds(50),
    "a large cell": [random_crystal(90)],
}


def same(program: Callable[..., dict[str, torch.Tensor]], ensemble: Ensemble) -> None:
    """Within 1e-5 of the largest prediction of a property, whatever the size of the batch."""
    batches = [batch_of(crystals, ensemble.recipe) for crystals in BATCHES.values()]
    with torch.no_grad():
        found = [program(*GraphTensors.of(batch)) for batch in batches]
    expected = [ensemble.predict([batch]) for batch in batches]
    for name in ensemble.names:
        column = ensemble.properties[name].column
        tolerance = 1e-5 * max(np.abs(values[name]).max() for values in expected)
        for theirs, ours in zip(found, (values[name] for values in expected), strict=True):
            np.testing.assert_allclose(theirs[column], ours.mean(axis=1), rtol=0, atol=tolerance)
            if len(ensemble) > 1:
                spread = theirs[f"{column} spread"]
                np.testing.assert_allclose(spread, ours.std(axis=1, ddof=1), rtol=0, atol=tolerance)


def test_one_program_for_batches_of_every_size(run: Path, package: Path) -> None:
    ensemble = Ensemble([load_checkpoint(member).build() for member in find_members(str(run))])
    program = export._load_program(package / export.PROGRAM, "torch_export")
    same(program, ensemble)


def test_a_compiled_package(foundation: Command, small: Path, folder: Path, tmp_path: Path) -> None:
    answer = foundation("export", small, "--out", tmp_path / "compiled", "--format", "aot_inductor")
    assert (answer.code, answer.err) == (0, "")
    assert "by at most" in answer.out
    program = export._load_program(tmp_path / "compiled" / export.PROGRAM, "aot_inductor")
    same(program, Ensemble([load_checkpoint(small).build()]))
    answer = alone(tmp_path / "compiled", folder / "good0.cif", "--out", tmp_path / "theirs.csv")
    assert answer.code == 0, answer.err
    assert foundation("predict", small, folder / "good0.cif", "--out", tmp_path / "ours.csv").code == 0
    (theirs,), (ours,) = (table(tmp_path / name).values() for name in ("theirs.csv", "ours.csv"))
    assert float(theirs["band_gap (eV)"]) == pytest.approx(float(ours["band_gap (eV)"]), rel=1e-4)


@pytest.mark.parametrize("wrong", ["band_gap (eV)", "modulus (GPa) spread", "is_metal"])
def test_a_program_that_predicts_something_else_is_not_left(
    foundation: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    model = PackagedModel(Ensemble([load_checkpoint(member).build() for member in find_members(str(run))]))

    def export_what_is_off_by(shift: float) -> Answer:
        def program(*tensors: torch.Tensor) -> dict[str, torch.Tensor]:
            found: dict[str, torch.Tensor] = model(*tensors)
            return found | {wrong: found[wrong] * (1 + shift)}

        monkeypatch.setattr(export, "_load_program", lambda *_: program)
        return foundation("export", run, "--out", tmp_path / "package")

    monkeypatch.setattr(export, "_write_program", lambda *_: None)
    for shift in (1e-2, float("nan")):
        answer = export_what_is_off_by(shift)
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert wrong in answer.err
        assert list(tmp_path.iterdir()) == []
    assert export_what_is_off_by(0.0).code == 0


def test_a_package_needs_no_kernels_of_another_library(
    foundation: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = torch.load(small, weights_only=True)
    content["foundation"]["spec"]["encoder"]["products"] = "cuequivariance"
    torch.save(content, tmp_path / "cuda.ckpt")
    model = PackagedModel(Ensemble([load_checkpoint(small).build()]))
    monkeypatch.setattr(export, "_write_program", lambda *_: None)
    monkeypatch.setattr(export, "_load_program", lambda *_: model)
    answer = foundation("export", tmp_path / "cuda.ckpt", "--out", tmp_path / "package")
    assert answer.code == 0, answer.err
    assert json.loads((tmp_path / "package" / "card.json").read_text())["spec"]["encoder"]["products"] == "plain"


@pytest.mark.parametrize(
    ("words", "culprit"),
    [
        (["nowhere.ckpt", "--out", "package"], "nowhere.ckpt"),
        (["RUN", "--out", "taken"], "taken: exists already"),
        (["RUN", "--out", "file"], "file: exists already"),
        (["RUN", "--out", "nowhere/package"], "no folder nowhere"),
        (["RUN", "--out", "package", "--format", "onnx"], "onnx"),
        (["RUN"], "--out"),
        (["--out", "package"], "checkpoint"),
    ],
)
def test_mistakes_are_one_line(
    foundation: Command, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], culprit: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").touch()
    answer = foundation("export", *(run if word == "RUN" else word for word in words))
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert culprit in answer.err
    assert {path.name for path in tmp_path.rglob("*")} == {"taken", "file"}


def test_no_compiler_is_one_line(
    foundation: Command, small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", (None, "no-such-compiler"))
    answer = foundation("export", small, "--out", tmp_path / "package", "--format", "aot_inductor")
    assert (answer.code, answer.err.count("\n")) == (2, 1)
    assert "C++ compiler" in answer.err
    assert list(tmp_path.iterdir()) == []
