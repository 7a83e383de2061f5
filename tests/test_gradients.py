"""The masked loss is a mean over all labels: of a batch, of all processes, and of all accumulated batches."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from gradients import ACCUMULATE, NAMES, gradients
from testing import batch_of, compounds, default_dtype, tiny_encoder

from datamodules.datamodule import CrystalDataModule
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN
from datamodules.store import write_store
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
def two_processes(uneven_store: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Steps]:
    """The gradients of two gloo processes, for every number of accumulated batches."""
    out = tmp_path_factory.mktemp("gradients") / "steps.pt"
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launched = []
    for rank in "01":
        names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        names |= {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(Path(__file__).with_name("gradients.py")), str(uneven_store), str(out)]
        root = str(Path(__file__).parents[1])
        launched.append(
            subprocess.Popen(
                command, env={**os.environ, **names, "PYTHONPATH": root}, stderr=subprocess.PIPE, text=True
            )
        )
    errors = [process.communicate(timeout=120)[1] for process in launched]
    assert [process.returncode for process in launched] == [0, 0], "\n".join(errors)[-3000:]
    return list(torch.load(out, weights_only=True))


@pytest.mark.parametrize("accumulate", ACCUMULATE)
def test_two_processes_have_the_gradients_of_one(
    uneven_store: Path, two_processes: list[Steps], accumulate: int
) -> None:
    """Whether one process sees 12 crystals, or two see 3 at a time and accumulate, is all the same."""
    alone = gradients(uneven_store, 6 * accumulate, 1)
    together = two_processes[ACCUMULATE.index(accumulate)]
    assert len(alone) == len(together) > 2
    for one, two in zip(alone, together, strict=True):
        assert one.keys() == two.keys()
        largest = max(float(gradient.abs().max()) for gradient in one.values())
        for name, gradient in one.items():
            assert float((gradient - two[name]).abs().max()) < 1e-6 * largest, name


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
