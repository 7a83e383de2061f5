"""The quickstart: the whole path in small, and what a second run does with the first one's results."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.errors import InputError
from datamodules.store import CrystalStore
from foundation.commands import adapt, pretrain
from foundation.commands import quickstart as command
from foundation.quickstart import alloys
from foundation.quickstart.models import Settings, Training
from foundation.quickstart.prepare import HELD_BACK, PLENTIFUL, prepare
from foundation.quickstart.run import claim, run

ENCODER = {"irreps": "4x0e+2x1o+2x2e", "num_blocks": 2, "readout_channels": 4}
SHORT = Training(epochs=2, learning_rate=1e-3, batch_size=8, validate_every=1)
TINY = Settings(
    labels=6,
    test=4,
    seeds=2,
    encoder=ENCODER,
    pretraining=SHORT,
    strategies=dict.fromkeys(("linear_probe", "from_scratch"), SHORT),
)


def few_starts() -> list[Any]:
    pairs = ("Ag-Pt", "Au-Cu", "Ag-Cu", "Al-Ni", "Cu-Pd", "Cu-Pt")
    chosen = [s for s in alloys.starts() if s.prototype.name == "A1" or s.id == "Cu-A2"]
    return chosen + [s for s in alloys.starts() if s.system in pairs and s.prototype.name in ("L10", "L12")]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    out = tmp_path_factory.mktemp("runs") / "quickstart"
    lines: list[str] = []
    chosen = few_starts()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alloys, "starts", lambda: iter(chosen))
        label_all = alloys.label_all
        patch.setattr(alloys, "label_all", lambda starts, workers: label_all(starts, workers=1))
        results = run(out, lines.append, TINY)
    return out, results, lines


Finished = tuple[Path, dict[str, Any], list[str]]


def test_says_what_was_made(finished: Finished) -> None:
    out, results, lines = finished
    records = (out / "data" / "alloys.jsonl").read_text().splitlines()
    with (out / "data" / "alloys_rejected.csv").open() as file:
        rejected = list(csv.DictReader(file))
    assert (results["crystals"]["accepted"], results["crystals"]["rejected"]) == (len(records), len(rejected))
    assert any(f"{len(records)} accepted, {len(rejected)} rejected" in line for line in lines)
    assert any(row["id"] == "Cu-A2" and row["reason"] == "unstable_elastic" for row in rejected)


def test_stores_keep_the_held_back_property_apart(finished: Finished) -> None:
    data = finished[0] / "data"
    many, few = CrystalStore.open(data / "pretraining"), CrystalStore.open(data / "adaptation")
    assert set(many.properties) == set(PLENTIFUL)
    assert set(few.properties) == {HELD_BACK}
    assert not set(many.ids) & set(few.ids)
    splits = json.loads((data / "splits.json").read_text())
    assert (len(splits["test"]), len(splits["trial1"]["6"])) == (4, 6)
    assert set(few.ids) == {*splits["test"], *splits["trial1"]["6"]}
    systems = {r["id"]: r["system"] for r in map(json.loads, (data / "alloys.jsonl").read_text().splitlines())}
    assert all(alloys.is_held_out(systems[id]) for id in splits["test"])
    assert not any(alloys.is_held_out(systems[id]) for id in (*many.ids, *splits["trial1"]["6"]))


def test_results_hold_every_model_and_baseline(finished: Finished) -> None:
    out, results, _ = finished
    assert json.loads((out / "metrics.json").read_text())["strategies"] == results["strategies"]
    with (out / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    names = [row["model"] for row in rows]
    assert names == ["linear_probe"] * 2 + ["from_scratch"] * 2 + ["median predictor", "linear in composition"]
    assert all(float(row["test_mae (GPa)"]) > 0 for row in rows)
    probe, scratch = results["strategies"]
    assert probe["trainable_parameters"] < scratch["trainable_parameters"]
    member = json.loads((out / "adapt" / "linear_probe" / "seed1" / "metrics.json").read_text())
    assert member["test"][HELD_BACK]["mae"] == probe["mae"][1]
    assert member["test"][HELD_BACK]["count"] == 4
    plots = sorted(path.name for path in (out / "plots").iterdir())
    assert plots == ["comparison.png", "learning_curves.png", "parity.png"]
    assert not [path for path in out.rglob(".*") if path.is_file()]  # nothing temporary is left


@pytest.mark.parametrize(("of", "parser"), [("pretrain", pretrain.parser), ("adapt/linear_probe/seed0", adapt.parser)])
def test_recorded_configurations_are_those_of_the_commands(
    finished: Finished, of: str, parser: Callable[[], Any]
) -> None:
    file = finished[0] / of / "config.yaml"
    config = parser().parse_args(["--config", str(file)])
    assert config.encoder.irreps == ENCODER["irreps"]
    assert config.trainer.max_epochs == 2
    assert config.optimization.learning_rate == yaml.safe_load(file.read_text())["optimization"]["learning_rate"]


def test_whole_alloys_are_used_again_and_torn_ones_are_not(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    whole = {}
    for name in ("alloys.jsonl", "alloys_rejected.csv", "generated.json"):
        whole[name] = (finished[0] / "data" / name).read_bytes()
        (data / name).write_bytes(whole[name])

    def generate(folder: Path) -> tuple[Path, Path]:
        for name in ("alloys.jsonl", "alloys_rejected.csv"):
            (folder / name).write_bytes(whole[name])
        return folder / "alloys.jsonl", folder / "alloys_rejected.csv"

    lines: list[str] = []
    monkeypatch.setattr(alloys, "generate", lambda folder: pytest.fail("made again"))
    prepare(data, 6, 4, lines.append)
    assert "used again" in lines[0]
    (data / "alloys.jsonl").write_bytes(whole["alloys.jsonl"][:-20])
    monkeypatch.setattr(alloys, "generate", generate)
    prepare(data, 6, 4, lines.append)
    assert any("made again" in line for line in lines)
    assert (data / "alloys.jsonl").read_bytes() == whole["alloys.jsonl"]


def test_a_second_run_moves_the_first_aside(tmp_path: Path) -> None:
    out = tmp_path / "quickstart"
    lines: list[str] = []
    for number in (1, 2):
        (out / "data").mkdir(parents=True, exist_ok=True)
        (out / "pretrain").mkdir()
        (out / "metrics.json").write_text(str(number))
        claim(out, lines.append)
        assert (out / f"earlier-{number}" / "metrics.json").read_text() == str(number)
        assert f"earlier-{number}" in lines[-1]
        assert sorted(path.name for path in out.iterdir() if not path.name.startswith("earlier")) == ["data"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    with pytest.raises(InputError, match="something else"):
        run(tmp_path, print, TINY)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="is a file"):
        run(tmp_path / "thesis.tex", print, TINY)


def test_the_command_prints_table_places_and_what_is_next(
    finished: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, results, _ = finished
    monkeypatch.setattr("foundation.quickstart.run.run", lambda *_, **__: results)
    assert command.main(["--out", str(out)]) == 0
    printed = capsys.readouterr().out
    for word in ("linear_probe", "from_scratch", "median predictor", "linear in composition", "GPa", "comparison.png"):
        assert word in printed
    assert "foundation data import" in printed
    assert "--pretrained mp-small" in printed


@pytest.mark.parametrize("words", [["--wandb", "maybe"], ["--sedes", "3"], ["extra"]])
def test_a_mistake_is_one_line(words: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        command.main(words)
    assert "\n" not in str(caught.value)
