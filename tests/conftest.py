"""What every test may use: real data where it is there, and no calls to the outside."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

if TYPE_CHECKING:
    from foundation.auto.folds import Folds

pytest.register_assert_rewrite("ranks", "testing", "suites", "studies", "shaped")

ROOT = Path(__file__).resolve().parent.parent

# Set on import, before a test can start W&B, and inherited by the processes that tests start.
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "agg"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; a test that asks for it is skipped where there is none."""
    folder = Path(os.environ.get("FOUNDATION_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FOUNDATION_DATA to the folder that holds it")
    return folder


class Answer(NamedTuple):
    """What a command left behind: its exit code and what it printed."""

    code: int
    out: str
    err: str


Command = Callable[..., Answer]


@pytest.fixture
def foundation(capsys: pytest.CaptureFixture[str]) -> Command:
    """The console command, inside this process."""
    from foundation.cli import main

    def run(*words: object) -> Answer:
        capsys.readouterr()
        code = main([str(word) for word in words])
        return Answer(code, *capsys.readouterr())

    return run


@pytest.fixture(scope="session")
def tiny_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 60 small crystals with formation energy, band gap (0.7 of them) and shear modulus (0.8)."""
    from testing import compounds, make_store

    return make_store(tmp_path_factory.mktemp("stores") / "tiny", compounds())


@pytest.fixture(scope="session")
def tensor_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of 60 small crystals with tensors, spectra, labels of atoms, a class and two scalars, some missing."""
    from testing import compounds, make_tensor_store

    return make_tensor_store(tmp_path_factory.mktemp("stores") / "tensors", compounds())


@pytest.fixture(scope="session")
def tiny_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny encoder's pretraining on formation energy and band gap, by the real command."""
    from testing import QUIET, TINY

    from foundation.cli import main

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["pretrain", "--data.store", str(tiny_store), "--data.properties", "formation_energy_per_atom,band_gap"]
    assert main([*words, *TINY, *QUIET, "--trainer.max_epochs", "2", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny folder of targets with lists of ids, and files to pretrain on beside it."""
    from studies import write_folder

    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture
def folds(tiny_store: Path) -> Folds:
    """The formation energies of the tiny store, cut into five folds."""
    from testing import tiny_encoder

    from datamodules.datamodule import CrystalDataModule
    from foundation.auto.folds import cut

    data = CrystalDataModule(str(tiny_store))
    data.choose(["formation_energy_per_atom"], tiny_encoder().recipe)
    return cut(data, 5, seed=0)
