"""A new head begins as a pretrained one that tells its labels, and as a fresh one where none does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules.datamodule import CrystalDataModule
from datamodules.properties import KNOWN
from foundation.adaptation import Adaptation
from foundation.checkpoint import Checkpoint, find_members, load_checkpoint
from foundation.inference import Ensemble
from foundation.kindred import begin_like_kindred, leave_one_out_of_line
from foundation.strategies.base import AdaptationStrategy
from foundation.strategies.from_scratch import FromScratch
from foundation.strategies.full import Full
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.spec import HeadSpec

NAME = "shear_modulus"


@pytest.fixture(scope="module")
def checkpoint(tiny_run: Path) -> Checkpoint:
    return load_checkpoint(find_members(str(tiny_run))[0])


def data_with(tiny_store: Path, checkpoint: Checkpoint, slope: float, noise: float) -> CrystalDataModule:
    """The tiny store, the property a line in what the pretrained head says of the band gap, and noise."""
    data = CrystalDataModule(str(tiny_store), val_share=0.0)
    data.choose([NAME], checkpoint.spec.build_encoder().recipe)
    rows = np.arange(len(data.graphs))
    said = Ensemble([checkpoint.build()]).predict_graphs(data.graphs, rows)["band_gap"][:, 0]
    random = np.random.default_rng(0).normal(size=len(rows))
    data.labels[:, 0] = torch.from_numpy(100 + slope * said + noise * random)
    return data


def adapted(
    data: CrystalDataModule, checkpoint: Checkpoint, strategy: AdaptationStrategy | None = None, **head: object
) -> tuple[MultiTaskModule, str]:
    spec = HeadSpec("heads.ScalarHead", head, KNOWN[NAME])
    made = Adaptation.of(spec, {}, Optimization(), strategy or Full(), checkpoint)
    module, lines = made.module(data, 0)
    return module, "\n".join(lines)


def test_it_says_what_the_line_says(tiny_store: Path, checkpoint: Checkpoint) -> None:
    data = data_with(tiny_store, checkpoint, slope=-7.0, noise=0.0)
    module, told = adapted(data, checkpoint)
    assert f"new: a head for {NAME}, which begins as that of band_gap" in told
    predicted = Ensemble([module]).predict_graphs(data.graphs, data.split.train)[NAME][:, 0]
    labels = data.training_labels(NAME)[1].numpy()
    assert np.abs(predicted - labels).max() < 1e-3 * labels.std()


@pytest.mark.parametrize("head", [{}, {"aggregation": "sum"}, {"element_reference": True}, {"hidden": 4}], ids=str)
def test_where_none_tells_or_fits_it_is_fresh_and_nothing_else_changes(
    tiny_store: Path, checkpoint: Checkpoint, head: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    slope, noise = (-7.0, 0.0) if head else (0.0, 1.0)
    data = data_with(tiny_store, checkpoint, slope, noise)
    module, told = adapted(data, checkpoint, **head)
    after = torch.rand(3)
    assert "begins as" not in told
    monkeypatch.setattr("foundation.adaptation.begin_like_kindred", lambda *_: "")
    other, _ = adapted(data, checkpoint, **head)
    assert torch.equal(after, torch.rand(3))
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), other.parameters(), strict=True))


def test_fresh_weights_know_no_kindred(tiny_store: Path, checkpoint: Checkpoint) -> None:
    data = data_with(tiny_store, checkpoint, slope=-7.0, noise=0.0)
    assert "begins as" not in adapted(data, checkpoint, FromScratch())[1]


def test_four_labels_are_no_evidence(tiny_store: Path, checkpoint: Checkpoint) -> None:
    data = data_with(tiny_store, checkpoint, slope=-7.0, noise=0.0)
    module, _ = adapted(data, checkpoint)
    data.labels[data.split.train[4:], 0] = torch.nan
    assert begin_like_kindred(module, NAME, checkpoint, data) == ""


def test_each_is_left_out() -> None:
    random = np.random.default_rng(1)
    x, y = random.normal(size=9), random.normal(size=9)
    errors = [
        abs(np.polyval(np.polyfit(np.delete(x, place), np.delete(y, place), 1), x[place]) - y[place])
        for place in range(9)
    ]
    assert leave_one_out_of_line(x, y) == pytest.approx(np.mean(errors))
    assert leave_one_out_of_line(np.ones(9), y) == np.inf
    assert leave_one_out_of_line(np.array([1.0, *np.zeros(8)]), y) == np.inf
