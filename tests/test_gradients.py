"""The masked loss is a mean over all labels: of a batch, of all processes, and of all accumulated batches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gradients import ACCUMULATE, DISTURBED, NAMES, gradients, validations
from launching import launch_two
from testing import batch_of, compounds, default_dtype, tiny_encoder

from datamodules.datamodule import CrystalDataModule
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN
from datamodules.store import write_store
from foundation.training.denoising import AT_REST, Displacements
from foundation.training.module import MultiTaskModule
from heads import ScalarHead

Steps = list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def uneven_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labels so uneven that some batches of a process have none of a property, and one property is rare."""
    crystals = compounds(50)
    random = np.random.default_rng(0)
    labels = {name: random.normal(loc=3.0, size=50) for name in NAMES}
    labels["band_gap"][random.random(50) < 0.6] = np.nan
    labels["shear_modulus"][random.random(50) < 0.85] = np.nan
    path = tmp_path_factory.mktemp("stores") / "uneven"
    write_store(path, crystals, labels, [KNOWN[name] for name in NAMES])
    return path


@pytest.fixture(scope="module")
def two_processes(
    uneven_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[list[Steps], list[dict[str, float]]]:
    """The gradients of two gloo processes, for every number of accumulated batches, of crystals at rest and then of
    disturbed ones, and what validation gives.
    """
    out = tmp_path_factory.mktemp("gradients") / "steps.pt"
    launch_two("gradients.py", uneven_store, out)
    steps, metrics = torch.load(out, weights_only=True)
    return steps, metrics


@pytest.mark.parametrize("displacements", [AT_REST, DISTURBED], ids=["at rest", "disturbed"])
@pytest.mark.parametrize("accumulate", ACCUMULATE)
def test_two_processes_have_the_gradients_of_one(
    uneven_store: Path, two_processes: tuple[list[Steps], Any], accumulate: int, displacements: Displacements
) -> None:
    """Whether one process sees 12 crystals, or two see 3 at a time and accumulate, is all the same."""
    alone = gradients(uneven_store, 6 * accumulate, 1, displacements)
    place = ACCUMULATE.index(accumulate) + len(ACCUMULATE) * (displacements == DISTURBED)
    together = two_processes[0][place]
    assert len(alone) == len(together) > 2
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        largest = max(float(gradient.abs().max()) for gradient in one.values())
        for name, gradient in one.items():
            assert float((gradient - two[name]).abs().max()) < 1e-6 * largest, name


def test_shares_are_as_uneven_as_they_come(uneven_store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the test above goes through: shares of other counts, shares without a property, and an odd tail."""
    data = CrystalDataModule(str(uneven_store), batch_size=3)
    data.choose(NAMES, NeighborRecipe())
    shares = []
    for rank in range(2):
        sampler: Any = data.train_dataloader().sampler
        monkeypatch.setattr(sampler, "_world", lambda rank=rank: (rank, 2))
        shares.append(list(sampler))
    counts = [(len(one), len(other)) for one, other in zip(*shares, strict=True)]
    assert any(one != other for one, other in counts)
    assert sum(counts[-1]) != 6
    labelled = [[data.labelled[rows, 2].any() for rows in share] for share in shares]
    assert any(one != other for one, other in zip(*labelled, strict=True))


def test_two_processes_validate_as_one(uneven_store: Path, two_processes: tuple[Any, list[dict[str, float]]]) -> None:
    """Of a property that no crystal has nothing is said, and a process may have no crystal at all."""
    alone = validations(uneven_store, 6)
    for one, two in zip(alone, two_processes[1], strict=True):
        assert one.keys() == two.keys()
        assert "val/formation_energy_per_atom/mae" in one
        assert not any("shear_modulus" in name for name in one)
        for name, value in one.items():
            assert two[name] == pytest.approx(value, rel=1e-9), name


def test_accumulated_batches_on_one_process(uneven_store: Path) -> None:
    for one, many in zip(gradients(uneven_store, 12, 1), gradients(uneven_store, 4, 3), strict=True):
        for name, gradient in one.items():
            torch.testing.assert_close(many[name], gradient, atol=1e-9, rtol=1e-6)


def test_a_step_is_the_gradient_of_the_mean_over_labels(uneven_store: Path) -> None:
    """The definition, written out for the first batch: the sum of losses over the number of labels."""
    data = CrystalDataModule(str(uneven_store), batch_size=16)
    data.choose(NAMES, NeighborRecipe())
    batch = next(iter(data.train_dataloader()))
    labels = batch.labels.double()
    with default_dtype(torch.float64):
        encoder = tiny_encoder()
        heads = {name: ScalarHead(str(encoder.irreps_out), KNOWN[name]).double() for name in NAMES}
        module = MultiTaskModule(encoder, heads)
        crystals = [data.store.crystal(row) for row in batch.row.tolist()]
        whole = batch_of(crystals, encoder.recipe, labels)
        sums, counts, _ = module.losses(whole)
        (module.weighting(sums, counts) / counts.sum()).backward()
        got = [p.grad.clone() for p in module.parameters() if p.grad is not None]
        module.zero_grad()
        total = torch.zeros(())
        for place, crystal in enumerate(crystals):
            one = batch_of([crystal], encoder.recipe)
            features = encoder(one)
            for index, name in enumerate(NAMES):
                if not labels[place, index].isnan():
                    total = total + heads[name].loss(heads[name](features, one), labels[place, index][None], one).sum()
        (total / (~labels.isnan()).sum()).backward()
        wanted = [p.grad for p in module.parameters() if p.grad is not None]
    for one, two in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, two, atol=1e-10, rtol=1e-8)
