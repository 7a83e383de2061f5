"""Tensors, labels of atoms and spectra from files to predictions, by the real commands."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import ase
import ase.io
import numpy as np
import pytest
import torch
from conftest import Command
from shaped import turned, zincblende
from studies import atoms
from testing import QUIET, TINY, batch_of, compounds, rock_salt

from datamodules.crystals import Crystal
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from datamodules.importing import import_store
from datamodules.properties import KNOWN, Property, parse_property
from datamodules.store import CrystalStore
from datamodules.tensors import has_voigt, rotated, to_full, to_voigt
from foundation.checkpoint import find_members, load_checkpoint
from foundation.commands.data import describe
from foundation.derived import quantities
from foundation.largest_errors import crystal_errors
from foundation.tracking.ending import final_metrics
from heads import AtomHead, ClassificationHead, TensorHead


def record(crystal: Crystal, **labels: Any) -> dict[str, Any]:
    return {"id": crystal.id or "x", "structure": atoms(crystal), "labels": labels}


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(one) + "\n" for one in records)
    return path


def rejected(store: Path) -> list[tuple[str, str, str]]:
    with (store / "rejected.csv").open() as file:
        return [(row["id"], row["reason"], row["detail"]) for row in csv.DictReader(file)]


def stiffness(young: float, anisotropy: float) -> Any:
    """[6, 6] of a cubic crystal, GPa."""
    made = np.full((6, 6), 0.0)
    made[:3, :3] = 0.4 * young
    made[range(6), range(6)] = [young] * 3 + [0.3 * young * anisotropy] * 3
    return made


# --- import ---------------------------------------------------------------------------------------------------------


def cubic(property: str, value: Any, crystal: Crystal | None = None, id: str = "good") -> dict[str, Any]:
    made = record(crystal or zincblende(), **{property: np.asarray(value).tolist()})
    return made | {"id": id}


@pytest.mark.parametrize("shape", ["full", "voigt", "flat"])
def test_a_tensor_is_stored_in_full_whatever_form_it_comes_in(tmp_path: Path, shape: str) -> None:
    dielectric = 5.0 * np.eye(3)
    given = {"full": dielectric, "voigt": to_voigt(dielectric, 2), "flat": dielectric.reshape(9)}[shape]
    file = write(tmp_path / "d.jsonl.gz", [cubic("dielectric_total", given)])
    import_store([file], tmp_path / "s")
    np.testing.assert_array_equal(CrystalStore.open(tmp_path / "s").nested("dielectric_total")[0], dielectric)


def test_voigt_and_back() -> None:
    random = np.random.default_rng(0)
    for rank, shape in ((2, (6,)), (3, (3, 6)), (4, (6, 6))):
        voigt = random.normal(size=(2, *shape))
        full = to_full(voigt, rank)
        assert full is not None
        np.testing.assert_array_equal(to_voigt(full, rank), voigt)
    elastic = to_full(np.arange(36.0).reshape(6, 6), 4)
    assert elastic is not None
    assert elastic[0, 0, 1, 2] == 3  # C14 is xx, yz


@pytest.mark.parametrize(
    ("formula", "expected"),
    [
        ("ij=ji", True),
        ("ij", False),
        ("ij=-ji", False),
        ("ijk=ikj", True),
        ("ijk=jik", False),  # its pair stands in front
        ("ijk=jik=kji", True),
        ("ijkl=jikl=klij", True),
        ("ijkl=ijlk=klij", True),
        ("ijkl=jikl=ijlk", True),  # a 6 x 6 matrix that need not be symmetric
        ("ijkl=klij", False),
    ],
)
def test_voigt_notation_needs_symmetric_pairs_however_they_are_written(formula: str, expected: bool) -> None:
    assert has_voigt(formula) == expected


def test_what_breaks_its_crystals_symmetry_is_rejected_or_counts_less(tmp_path: Path) -> None:
    good, slanted = stiffness(100, 1.2), stiffness(100, 1.2)
    slanted[0, 0] *= 2
    file = write(
        tmp_path / "e.jsonl.gz",
        [cubic("elastic_tensor", good), cubic("elastic_tensor", slanted, rock_salt(), "bad")],
    )
    import_store([file], tmp_path / "reject")
    assert [(id, reason) for id, reason, _ in rejected(tmp_path / "reject")] == [("bad", "breaks_point_group")]
    import_store([file], tmp_path / "down", asymmetric="downweight")
    store = CrystalStore.open(tmp_path / "down")
    weights = dict(zip(store.ids, store.labels(["elastic_tensor.weight"])[:, 0], strict=True))
    assert weights["good"] == 1
    assert 0 < weights["bad"] < 0.5
    assert store.manifest["counts"]["downweighted"] == 1
    assert any(line.split() == ["labels", "that", "count", "less", "1"] for line in describe(store))
    import_store([file], tmp_path / "keep", asymmetric="keep")
    assert len(CrystalStore.open(tmp_path / "keep")) == 2


def test_a_tensor_in_another_frame_than_its_crystal_is_found_out(tmp_path: Path) -> None:
    angle = 0.5
    rotation = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    full = to_full(stiffness(100, 3.0), 4)
    assert full is not None
    both_turned = cubic("elastic_tensor", rotated(full, rotation, 4), turned(zincblende(), rotation))
    tensor_turned = cubic("elastic_tensor", rotated(full, rotation, 4), id="bad")
    import_store([write(tmp_path / "a.jsonl.gz", [both_turned])], tmp_path / "a")
    assert not rejected(tmp_path / "a")
    with gzip.open(write(tmp_path / "b.jsonl.gz", [tensor_turned, both_turned | {"id": "good"}])):
        import_store([tmp_path / "b.jsonl.gz"], tmp_path / "b")
    assert [(id, reason) for id, reason, _ in rejected(tmp_path / "b")] == [("bad", "breaks_point_group")]


def test_an_atom_without_a_tensor_hides_nothing_of_the_others(tmp_path: Path) -> None:
    good, bad = (2 * np.eye(3)).tolist(), np.diag([3.0, 2.0, 1.0]).tolist()
    rest = [None] * (len(zincblende()) - 1)
    records = [
        record(zincblende(), born_charges=[charges, *rest]) | {"id": name}
        for name, charges in (("good", good), ("bad", bad))
    ]
    import_store([write(tmp_path / "a.jsonl.gz", records)], tmp_path / "a", separate=True)
    assert [(id, reason) for id, reason, _ in rejected(tmp_path / "a")] == [("bad", "breaks_point_group")]


@pytest.mark.parametrize(
    ("name", "value", "reason", "detail"),
    [
        ("dielectric_total", [[1.0, 2.0], [3.0, 4.0]], "wrong_shape", "a tensor ij=ji has the shape (3, 3)"),
        ("dielectric_total", [[1.0, 0, 0], [2.0, 1, 0], [0, 0, 1]], "not_symmetric", "is off ij=ji by"),
        ("elastic_tensor", [1.0] * 36, "wrong_shape", "(3, 3, 3, 3)"),
        ("born_charges", [np.eye(3).tolist()], "wrong_length", "1 entries for 2 atoms"),
        ("magmom_site", [1.0, 2.0, 3.0], "wrong_length", "magmom_site"),
        ("dielectric_total", 5.0, "wrong_shape", "=5.0 a tensor ij=ji has the shape (3, 3)"),
        ("phonon_dos", [[0.5]] * 51, "wrong_shape", "a bin of a spectrum is one number"),
        ("phonon_dos", [0.5] * 9 + [None] + [0.5] * 41, "nonfinite_label", "bin 9 is null"),
        ("phonon_dos", [0.5] * 50, "other_grid", "50 bins, the grid is 0..1000..51 cm^-1"),
        ("dielectric_total", [[float("nan"), 0, 0], [0, 1, 0], [0, 0, 1]], "nonfinite_label", "dielectric_total"),
    ],
)
def test_a_bad_label_is_listed_and_the_import_goes_on(
    tmp_path: Path, name: str, value: Any, reason: str, detail: str
) -> None:
    good = {
        "dielectric_total": np.eye(3).tolist(),
        "elastic_tensor": stiffness(90, 1).tolist(),
        "born_charges": [np.eye(3).tolist(), (-np.eye(3)).tolist()],
        "magmom_site": [1.0, None],
        "phonon_dos": [0.5] * 51,
    }[name]
    file = write(
        tmp_path / "mine.jsonl.gz",
        [record(zincblende(), **{name: value}) | {"id": "bad"}, record(rock_salt(), **{name: good}) | {"id": "good"}],
    )
    result = import_store([file], tmp_path / "s")
    ((source, _, id, found, told),) = result.rejected
    assert (source, id, found) == ("mine", "bad", reason)
    assert detail in told
    store = CrystalStore.open(tmp_path / "s")
    assert store.ids == ["good"]


def test_a_spectrum_that_states_another_grid_is_listed(tmp_path: Path) -> None:
    good, other = np.linspace(0, 1000, 51), np.linspace(0, 500, 51)
    file = write(
        tmp_path / "dos.jsonl.gz",
        [
            record(zincblende(), phonon_dos=[0.5] * 51, phonon_dos_grid=other.tolist()) | {"id": "bad"},
            record(rock_salt(), phonon_dos=[0.5] * 51, phonon_dos_grid=good.tolist()) | {"id": "good"},
        ],
    )
    import_store([file], tmp_path / "s")
    assert [(id, reason) for id, reason, _ in rejected(tmp_path / "s")] == [("bad", "other_grid")]
    assert list(CrystalStore.open(tmp_path / "s").properties) == ["phonon_dos"]


def test_tensors_of_atoms_from_extxyz(tmp_path: Path) -> None:
    salt = rock_salt()
    atoms = ase.Atoms(salt.numbers, cell=salt.lattice, scaled_positions=salt.frac_coords, pbc=True)
    charges = np.stack([np.eye(3), -np.eye(3)])
    atoms.set_array("born_charges", charges.reshape(2, 9))
    atoms.info["dielectric_total"] = 2.5 * np.eye(3)
    ase.io.write(tmp_path / "salt.extxyz", atoms)
    import_store([tmp_path / "salt.extxyz"], tmp_path / "s")
    store = CrystalStore.open(tmp_path / "s")
    np.testing.assert_allclose(store.shaped("born_charges").values, charges)
    np.testing.assert_allclose(store.shaped("dielectric_total").values[0], 2.5 * np.eye(3))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("d:C/N:ijk=ikj", Property("d", "C/N", "", kind="tensor", formula="ijk=ikj")),
        ("q:e:ij:atom", Property("q", "e", "", "atom", "tensor", formula="ij")),
        ("dos:1/meV:grid=0..100..11 meV", Property("dos", "1/meV", "11x0e", kind="spectrum", grid="0..100..11 meV")),
        ("order::classes=4", Property("order", kind="class", classes=4)),
    ],
)
def test_declarations(text: str, expected: Property) -> None:
    assert parse_property(text) == expected


@pytest.mark.parametrize("text", ["d:C/N:ij=jk", "d:C/N:ijj", "dos::grid=0-100", "order::classes=one"])
def test_a_declaration_that_cannot_be_parsed_is_one_line(text: str) -> None:
    with pytest.raises(InputError) as error:
        parse_property(text)
    assert "\n" not in str(error.value)


# --- batches --------------------------------------------------------------------------------------------------------


def test_batches_carry_the_labels_of_their_crystals(tensor_store: Path) -> None:
    data = CrystalDataModule(str(tensor_store), batch_size=7)
    names = ["formation_energy_per_atom", "elastic_tensor", "magmom_site", "born_charges", "phonon_dos"]
    data.choose(names, NeighborRecipe())
    nested = {name: data.store.nested(name) for name in names}
    seen = 0
    for batch in data.loader("all"):
        stops = np.cumsum(batch.num_atoms.numpy())
        for place, row in enumerate(batch.row.tolist()):
            atoms = slice(stops[place] - int(batch.num_atoms[place]), stops[place])
            for name in names[1:]:
                found = batch.shaped[name][atoms if name in ("magmom_site", "born_charges") else place].numpy()
                if nested[name][row] is None:
                    assert np.isnan(found).all()
                    assert torch.isnan(batch.labels[place, names.index(name)])
                else:
                    np.testing.assert_allclose(found, np.array(nested[name][row], dtype=float), rtol=1e-6)
            seen += 1
    assert seen == len(data.store)


def test_a_label_that_does_not_count_is_not_in_the_batch(tensor_store: Path) -> None:
    data = CrystalDataModule(str(tensor_store))
    data.choose(["elastic_tensor", "formation_energy_per_atom"], NeighborRecipe())
    rows = data.split.test
    out = np.zeros((len(rows), 2), dtype=bool)
    out[:, 0] = True
    data.discount("test", out)
    for batch in data.loader("test"):
        assert torch.isnan(batch.shaped["elastic_tensor"]).all()
    assert torch.isnan(data.targets("elastic_tensor", rows)).all()


# --- commands -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def joint_run(tensor_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All heads trained jointly, beside those of scalars."""
    from foundation.cli import main

    folder = tmp_path_factory.mktemp("runs") / "joint"
    words = ["pretrain", "--config", "configs/pretrain_tensors.yaml", "--data.store", str(tensor_store), *TINY, *QUIET]
    assert main([*words, "--trainer.max_epochs", "2", "--out", str(folder)]) == 0
    return folder


def test_all_heads_train_jointly(joint_run: Path) -> None:
    test = json.loads((joint_run / "metrics.json").read_text())["test"]
    assert {"mae", "frobenius", "baseline_mae", "baseline_frobenius", "derived"} <= test["elastic_tensor"].keys()
    assert {"K_VRH", "G_VRH", "youngs_modulus", "universal_anisotropy"} <= test["elastic_tensor"]["derived"].keys()
    assert {"mae", "cumulative_mae", "last_peak_mae", "baseline_mae"} <= test["phonon_dos"].keys()
    assert {"accuracy", "balanced_accuracy", "auroc", "calibration_error"} <= test["is_metal"].keys()
    assert {"mae", "baseline_mae"} <= test["magmom_site"].keys()
    header = (joint_run / "metrics.csv").read_text().splitlines()[0]
    for name in ("elastic_tensor", "born_charges", "phonon_dos", "magmom_site"):
        assert f"val/{name}/mae" in header
        assert f"train/{name}/loss" in header


def test_predictions_are_json_columns_and_derived_numbers(foundation: Command, joint_run: Path, tmp_path: Path) -> None:
    structure = tmp_path / "x.cif"
    crystal = compounds(1)[0]
    atoms = ase.Atoms(crystal.numbers, cell=crystal.lattice, scaled_positions=crystal.frac_coords, pbc=True)
    ase.io.write(structure, atoms)
    rows = {}
    for form in ("full", "voigt"):
        answer = foundation("predict", joint_run, structure, "--tensor-format", form, "--out", tmp_path / "p.csv")
        assert answer.code == 0, answer.err
        with (tmp_path / "p.csv").open() as file:
            (rows[form],) = csv.DictReader(file)
        assert ("no Voigt notation, written in full: born_charges" in answer.err) == (form == "voigt")
    full, voigt = (np.array(json.loads(rows[form]["elastic_tensor (GPa)"])) for form in ("full", "voigt"))
    assert (full.shape, voigt.shape) == ((3, 3, 3, 3), (6, 6))
    np.testing.assert_allclose(to_voigt(full, 4), voigt)
    assert np.linalg.eigvalsh(voigt)[0] > 0
    charges = np.array(json.loads(rows["full"]["born_charges (e)"]))
    assert charges.shape == (len(crystal), 3, 3)
    assert np.abs(charges.sum(axis=0)).max() < 1e-4
    assert np.array(json.loads(rows["full"]["phonon_dos"])).shape == (51,)
    assert float(rows["full"]["elastic_tensor.K_Voigt (GPa)"]) == pytest.approx(voigt[:3, :3].sum() / 9, rel=1e-4)
    assert float(rows["full"]["elastic_tensor.mechanically_stable"]) == 1
    assert 0 <= float(rows["full"]["phonon_dos.last_peak (cm^-1)"]) <= 1000


def test_evaluate_and_inspect_know_all_heads(
    foundation: Command, joint_run: Path, tensor_store: Path, tmp_path: Path
) -> None:
    answer = foundation("evaluate", joint_run, "--data.store", tensor_store, "--out", tmp_path / "e")
    assert answer.code == 0, answer.err
    told = json.loads((tmp_path / "e" / "metrics.json").read_text())["test"]
    trained = json.loads((joint_run / "metrics.json").read_text())["test"]
    assert told["elastic_tensor"]["frobenius"] == pytest.approx(trained["elastic_tensor"]["frobenius"], rel=1e-5)
    assert "elastic_tensor.K_VRH" in answer.out
    answer = foundation("inspect", joint_run)
    assert answer.code == 0, answer.err
    assert "TensorHead" in answer.out
    assert "ijkl=jikl=klij" in answer.out
    words = answer.out.split()
    assert {"positive_definite,", "elastic", "sum_rule", "absolute", "sign_free,", "classes"} <= set(words)


def test_every_property_has_its_largest_errors(joint_run: Path) -> None:
    metrics = json.loads((joint_run / "metrics.json").read_text())["test"]
    with (joint_run / "errors.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["property"] for row in rows} == metrics.keys()
    for name, key in (("elastic_tensor", "frobenius"), ("piezoelectric_tensor", "frobenius"), ("phonon_dos", "mae")):
        errors = [float(row["error"]) for row in rows if row["property"] == name]
        assert errors == sorted(errors, reverse=True)
        assert len(errors) == metrics[name]["count"]
        assert np.mean(errors) == pytest.approx(metrics[name][key], rel=1e-4)
    final = final_metrics({"val": {}, "test": metrics})
    assert final["final/test/elastic_tensor/derived/K_VRH/mae"] == metrics["elastic_tensor"]["derived"]["K_VRH"]["mae"]


def test_errors_of_crystals_with_labels_of_atoms_and_of_several_classes() -> None:
    batch = batch_of(compounds(2))
    irreps = "8x0e+4x1o+2x2e"
    sizes = batch.num_atoms.tolist()
    target = torch.zeros(sum(sizes), 3, 3, dtype=torch.float64)
    target[0] = torch.nan
    target[sizes[0] :] = torch.nan
    found = crystal_errors(AtomHead(irreps, KNOWN["born_charges"]), torch.ones_like(target), target, batch)
    np.testing.assert_allclose(found[0], [0, 3, 3])
    assert np.isnan(found[1]).all()
    several = ClassificationHead(irreps, Property("order", kind="class", classes=3))
    probabilities = torch.tensor([[0.2, 0.7, 0.1], [0.3, 0.3, 0.4]])
    found = crystal_errors(several, probabilities, torch.tensor([0.0, torch.nan]), batch)
    np.testing.assert_allclose(found[0], [0, 1, 0.8], rtol=1e-6)
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("config", ["elastic", "born_charges"])
@pytest.mark.parametrize("strategy", ["linear_probe", "low_rank", "interpolate", "from_scratch"])
def test_strategies_adapt_shaped_heads(
    foundation: Command, tiny_run: Path, tensor_store: Path, tmp_path: Path, config: str, strategy: str
) -> None:
    words = ["adapt", "--config", f"configs/adapt_{config}.yaml", "--data.store", tensor_store, *QUIET]
    words += ["--strategy", strategy, "--trainer.max_epochs", 2, "--out", tmp_path / "run", "--seeds", 2]
    answer = foundation(*words, *(TINY if strategy == "from_scratch" else ["--pretrained", tiny_run]))
    assert answer.code == 0, answer.err
    (name,) = json.loads((tmp_path / "run" / "metrics.json").read_text())["test"]
    answer = foundation("predict", tmp_path / "run", tensor_store, "--out", tmp_path / "p.csv")
    assert answer.code == 0, answer.err
    with (tmp_path / "p.csv").open() as file:
        row = next(csv.DictReader(file))
    spread = [value for key, value in row.items() if key.startswith(name) and key.endswith(" spread")]
    assert len(spread) == 1


def test_shaped_heads_stay_in_replay_and_by_keep_head(
    foundation: Command, joint_run: Path, tensor_store: Path, tmp_path: Path
) -> None:
    words = ["adapt", "--pretrained", joint_run, "--data.store", tensor_store, *QUIET, "--trainer.max_epochs", 1]
    kept = foundation(*words, "--property", "elastic_tensor", "--strategy", "keep_head", "--out", tmp_path / "k")
    assert kept.code == 0, kept.err
    words += ["--property", "shear_modulus", "--strategy", "replay", "--strategy.init_args.store", tensor_store]
    answer = foundation(*words, "--out", tmp_path / "r")
    assert answer.code == 0, answer.err
    heads = load_checkpoint(find_members(str(tmp_path / "r"))[0]).spec.heads
    assert {"shear_modulus", "elastic_tensor", "born_charges"} <= heads.keys()


@pytest.mark.parametrize(
    ("name", "head", "shapes"),
    [
        ("phonon_dos", ["SpectrumHead", "--head.init_args.grid", "0..1000..31 cm^-1"], ("(51,)", "(31,)")),
        ("dielectric_total", ["TensorHead", "--head.init_args.formula", "ijk=ikj"], ("(3, 3)", "(3, 3, 3)")),
        ("my_elastic", ["TensorHead", "--head.init_args.formula", "ijkl=jikl=klij"], ("(6, 6)", "(3, 3, 3, 3)")),
        ("born_charges", ["AtomHead", "--head.init_args.formula", "i"], ("(3, 3)", "(3,)")),
    ],
)
def test_a_head_of_another_shape_than_its_labels_is_one_line(
    foundation: Command, tmp_path: Path, name: str, head: list[str], shapes: tuple[str, str]
) -> None:
    random = np.random.default_rng(0)
    values = {
        "phonon_dos": lambda: random.random(51),
        "dielectric_total": lambda: random.random() * np.eye(3),
        "my_elastic": lambda: stiffness(90 + random.random(), 1),
        "born_charges": lambda: random.random() * np.array([np.eye(3), -np.eye(3)]),
    }[name]
    store = tmp_path / "store"
    crystals = [crystal for crystal in compounds() if len(crystal) == 2]
    records = [cubic(name, values(), crystal, f"c{n}") for n, crystal in enumerate(crystals)]
    import_store([write(tmp_path / "mine.jsonl.gz", records)], store, asymmetric="keep")
    words = ["adapt", "--data.store", store, "--property", name, "--strategy", "from_scratch", *TINY, *QUIET]
    answer = foundation(*words, "--out", tmp_path / "r", "--head", f"heads.{head[0]}", *head[1:])
    assert answer.code == 2, answer.err
    line = answer.err.strip().splitlines()[-1]
    assert all(text in line for text in (name, str(store), *(f"shape {shapes[0]}", f"predicts {shapes[1]}")))


@pytest.mark.parametrize("strategy", ["linear_probe", "keep_head"])
def test_labels_out_of_reach_stand_in_the_folder_of_the_run(
    foundation: Command, joint_run: Path, tmp_path: Path, strategy: str
) -> None:
    store = tmp_path / "store"
    records = [
        cubic("elastic_tensor", stiffness(-90 if n == 3 else 90 + n, 1), crystal, f"c{n}")
        for n, crystal in enumerate(compounds(12))
    ]
    import_store([write(tmp_path / "mine.jsonl.gz", records)], store, asymmetric="keep")
    words = ["adapt", "--config", "configs/adapt_elastic.yaml", "--pretrained", joint_run, "--data.store", store]
    words += [*QUIET, "--trainer.max_epochs", 1, "--data.test_share", 0, "--data.val_share", 0]
    answer = foundation(*words, "--strategy", strategy, "--out", tmp_path / "r")
    assert answer.code == 0, answer.err
    assert "elastic_tensor: 1 training labels are not positive definite" in answer.err
    metrics = json.loads((tmp_path / "r" / "metrics.json").read_text())
    assert metrics["not_positive_definite"] == {"elastic_tensor": ["c3"]}


@pytest.mark.parametrize(
    "words",
    [
        ["adapt", "--config", "configs/adapt_elastic.yaml", "--strategy", "full", "--folds", 3],
        ["rank", "--property", "elastic_tensor"],
    ],
    ids=["folds", "rank"],
)
def test_what_knows_scalars_only_says_so_in_one_line(
    foundation: Command, tiny_run: Path, tensor_store: Path, tmp_path: Path, words: list[Any]
) -> None:
    command, *options = words
    given = [tiny_run] if command == "rank" else ["--pretrained", tiny_run, "--out", tmp_path / "r", *QUIET]
    answer = foundation(command, *given, "--data.store", tensor_store, *options)
    assert answer.code == 2
    assert "elastic_tensor is not one " in answer.err.strip().splitlines()[-1]


def test_a_package_of_tensors_is_refused(foundation: Command, joint_run: Path, tmp_path: Path) -> None:
    answer = foundation("export", joint_run, "--out", tmp_path / "package")
    assert answer.code == 2
    assert answer.err.strip().splitlines()[-1].endswith("is not")


# --- derived --------------------------------------------------------------------------------------------------------


def derived(name: str, derive: Any, tensor: Any) -> dict[str, float]:
    head = TensorHead("8x0e+4x1o+2x2e", KNOWN[name], derive=derive)
    return {quantity.name: quantity.of(np.asarray(tensor)) for quantity in quantities(head)}


def test_moduli_of_an_isotropic_solid() -> None:
    bulk, shear = 100.0, 60.0
    voigt = np.zeros((6, 6))
    voigt[:3, :3] = bulk - 2 * shear / 3
    voigt[range(6), range(6)] = [bulk + 4 * shear / 3] * 3 + [shear] * 3
    found = derived("elastic_tensor", "elastic", to_full(voigt, 4))
    assert found["K_Voigt"] == pytest.approx(bulk) == found["K_Reuss"] == found["K_VRH"]
    assert found["G_Voigt"] == pytest.approx(shear) == pytest.approx(found["G_Reuss"])
    assert found["youngs_modulus"] == pytest.approx(9 * bulk * shear / (3 * bulk + shear))
    assert found["universal_anisotropy"] == pytest.approx(0, abs=1e-9)
    assert found["mechanically_stable"] == 1
    voigt[5, 5] = -1
    assert derived("elastic_tensor", "elastic", to_full(voigt, 4))["mechanically_stable"] == 0


def test_refractive_index_and_piezoelectric_modulus() -> None:
    found = derived("dielectric_electronic", "dielectric", np.diag([4.0, 4.0, 9.0]))
    assert found["refractive_index"] == pytest.approx((17 / 3) ** 0.5)
    assert found["refractive_index_anisotropy"] == pytest.approx(1.0)
    assert found["dielectric_constant"] == pytest.approx(17 / 3)
    assert found["dielectric_anisotropy"] == pytest.approx(5.0)
    full = to_full(np.array([[0, 0, 0, 0.3, 0, 0], [0, 0, 0, 0, 0.3, 0], [0, 0, 0, 0, 0, 0.3]]), 3)
    # Of a cubic crystal it lies along the diagonal, 6 e14 / 3^1.5.
    assert derived("piezoelectric_tensor", "piezoelectric", full)["largest_piezoelectric_modulus"] == pytest.approx(
        0.3 * 6 / 27**0.5
    )


def test_a_total_dielectric_tensor_has_no_refractive_index() -> None:
    assert derived("dielectric_total", "dielectric", np.diag([4.0, 4.0, 9.0])).keys() == {
        "dielectric_constant",
        "dielectric_anisotropy",
    }
