"""Sharded weights: the same training as with DDP, in parts, and checkpoints that anyone can read."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launching import launch_two
from lightning.pytorch.callbacks import Callback
from testing import compounds, make_store, tiny_encoder
from torch import Tensor

from datamodules.errors import InputError
from datamodules.properties import KNOWN
from foundation.checkpoint import load_checkpoint
from foundation.strategies.low_rank import LowRank
from foundation.training.module import MultiTaskModule
from foundation.training.sharded import check_sharding, unit_paths
from foundation.training.weighting import UncertaintyWeights
from heads import ScalarHead

Found = dict[str, tuple[dict[str, Tensor], int]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests/sharding.py leaves."""
    folder = tmp_path_factory.mktemp("sharding")
    launch_two("sharding.py", make_store(folder / "store", compounds(50)), folder)
    return folder


@pytest.fixture(scope="module")
def found(runs: Path) -> Found:
    return dict(torch.load(runs / "weights.pt", weights_only=True))


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, weight in one.items():
        torch.testing.assert_close(other[name], weight, atol=1e-6, rtol=0, msg=name)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_weights_are_those_of_ddp_after_five_steps(found: Found, accumulate: int) -> None:
    whole, sharded = found[f"ddp, {accumulate}"], found[f"fsdp2, {accumulate}"]
    assert_same(whole[0], sharded[0])
    count = sum(weight.numel() for weight in whole[0].values())
    assert whole[1] == count
    assert sharded[1] < 0.55 * count


def test_a_run_goes_on_with_either_strategy(found: Found) -> None:
    for name in ("ddp, then fsdp2", "fsdp2, then fsdp2", "fsdp2, then ddp"):
        assert_same(found["ddp, long"][0], found[name][0])


def test_a_checkpoint_is_an_ordinary_one(runs: Path, found: Found) -> None:
    whole, sharded = (load_checkpoint(runs / f"{name}, 1" / "checkpoints" / "last.ckpt") for name in ("ddp", "fsdp2"))
    assert sharded.card["spec"] == whole.card["spec"]
    assert_same(whole.weights, sharded.weights)
    module = sharded.build()
    for name, parameter in module.encoder.named_parameters():  # averaged, as the run leaves them
        torch.testing.assert_close(parameter.double(), found["ddp, 1"][0][f"encoder.{name}"], atol=1e-6, rtol=0)


def test_every_weight_belongs_to_one_unit() -> None:
    encoder = tiny_encoder()
    head = ScalarHead(str(encoder.irreps_out), KNOWN["band_gap"])
    module = MultiTaskModule(encoder, {"band_gap": head}, weighting=UncertaintyWeights(["band_gap"]))
    owned = [
        f"{path}.{name}" for path in unit_paths(module) for name, _ in module.get_submodule(path).named_parameters()
    ]
    assert sorted(owned) == sorted(name for name, _ in module.named_parameters())


def test_a_strategy_that_needs_whole_weights_is_refused() -> None:
    encoder = tiny_encoder()
    module = MultiTaskModule(encoder, {"band_gap": ScalarHead(str(encoder.irreps_out), KNOWN["band_gap"])})
    check_sharding(module, [])
    with pytest.raises(InputError, match="fsdp2: the adaptation strategy works on whole weights"):
        check_sharding(module, [Callback()])
    LowRank(2).prepare(module, None, None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="use ddp"):
        check_sharding(module, [])
