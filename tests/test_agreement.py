"""What processes tell one another in a step, what becomes of a step whose loss is not finite, how they end."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from gradients import make_module
from lightning.pytorch.callbacks import Callback
from testing import default_dtype
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from foundation.checkpoint import make_card
from foundation.training.module import MultiTaskModule, NonFiniteLoss
from foundation.training.trainer import make_trainer, silence_lightning

Trained = tuple[MultiTaskModule, CrystalDataModule]
QUIET: dict[str, Any] = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "enable_progress_bar": False}


@pytest.fixture
def grouped(tmp_path: Path) -> Iterator[None]:
    """A group of one process, which talks to itself as several do."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.fixture
def double() -> Iterator[None]:
    with default_dtype(torch.float64):
        yield


@pytest.fixture
def trained(double: None, tiny_store: Path) -> Trained:
    data = CrystalDataModule(str(tiny_store), batch_size=4)
    module, spec = make_module(data)
    module.card = make_card(spec, module, data)
    return module, data


def fit(trained: Trained, folder: Path, own: Callback, **more: Any) -> None:
    module, data = trained
    with warnings.catch_warnings():
        silence_lightning()
        trainer = make_trainer(folder, [], module, True, [own], {**QUIET, **more}, save_every=600)
        trainer.fit(module, datamodule=data)


class Steps(Callback):
    """Notes when batches train."""

    inside = False
    batches = 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.inside, self.batches = True, self.batches + 1

    def on_validation_start(self, *_: Any) -> None:
        self.inside = False

    def on_train_epoch_end(self, *_: Any) -> None:
        self.inside = False


def test_nothing_is_waited_for_while_a_loss_is_computed(
    grouped: None, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps, waited = Steps(), []
    plain = torch.distributed.all_reduce

    def noted(tensor: Tensor, *arguments: Any, async_op: bool = False, **named: Any) -> Any:
        if steps.inside:
            waited.append(not async_op)
        return plain(tensor, *arguments, async_op=async_op, **named)

    monkeypatch.setattr(torch.distributed, "all_reduce", noted)
    fit(trained, tmp_path, steps)
    assert steps.batches > 5
    assert waited == [False] * steps.batches  # one vote


class Poison(Callback):
    """Makes one batch's labels infinite, and keeps the weights as they were before its step."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.rows: list[int] = []
        self.before: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer: lightning.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx <= self.batch:
            self.before = {name: weight.detach().clone() for name, weight in pl_module.named_parameters()}
        if batch_idx == self.batch:
            self.rows = batch.row.tolist()
            batch.labels = torch.full_like(batch.labels, torch.inf)


@pytest.mark.parametrize(("accumulate", "poisoned"), [(1, 2), (2, 2), (2, 3)])
def test_a_loss_that_is_not_finite_changes_no_weight(
    trained: Trained, tmp_path: Path, accumulate: int, poisoned: int
) -> None:
    poison, (module, data) = Poison(poisoned), trained
    with pytest.raises(NonFiniteLoss) as raised:
        fit(trained, tmp_path, poison, accumulate_grad_batches=accumulate)
    ids = ", ".join(data.store.ids[row] for row in poison.rows)
    assert f"not finite at step {poisoned // accumulate}; the batch holds the crystals {ids}:" in str(raised.value)
    assert all(torch.equal(weight, poison.before[name]) for name, weight in module.named_parameters())


ENDING = """
import atexit, os
from foundation import cli

class Falls:
    def __del__(self):
        os.abort()  # as a thread of gloo does that gives back a tensor by now

def command():
    global falls
    falls = Falls()
    import torch
    if GROUPED:
        store = torch.distributed.HashStore()
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    atexit.register(print, "last words")
    return 3

cli.main = command
cli.run()
"""


@pytest.mark.parametrize(("grouped", "code"), [(True, 3), (False, -6)])
def test_a_process_of_a_group_ends_before_python_is_taken_apart(grouped: bool, code: int) -> None:
    """With its code, and with all that was to be done and said at its end."""
    script = ENDING.replace("GROUPED", str(grouped))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (code, "last words\n")
