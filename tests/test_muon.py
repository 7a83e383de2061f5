"""Muon: against its definition, torch's own, and AdamW for all that is not turned."""

from __future__ import annotations

import copy

import pytest
import torch
from testing import tiny_encoder
from torch import Tensor, nn

from datamodules.properties import KNOWN
from foundation.training.module import MultiTaskModule
from foundation.training.muon import MOMENTUM, Muon, orthogonalized
from foundation.training.optimization import Optimization, parameter_groups
from heads import ScalarHead

SHAPES = [(8, 8), (16, 4), (4, 16), (16, 4), (5, 7), (1, 9)]


def matrices(seed: int) -> list[Tensor]:
    made = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=made) for shape in SHAPES]


def test_all_directions_become_alike_and_stay_where_they_are() -> None:
    for matrix, turned in zip(matrices(0), orthogonalized(matrices(0)), strict=True):
        left, _, right = torch.linalg.svd(matrix, full_matrices=False)
        inside = left.T @ turned @ right.T
        assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-4)
        assert 0.6 < float(inside.diagonal().min()) <= float(inside.diagonal().max()) < 1.25


def test_a_step_is_that_of_torch() -> None:
    """Torch's own, one matrix at a time, in 16 bits."""
    own, other = (nn.ParameterList(matrices(1)) for _ in range(2))
    ours = Muon([{"params": list(own), "lr": 0.02, "weight_decay": 0.1, "matrices": True}])
    theirs = torch.optim.Muon(other, lr=0.02, weight_decay=0.1, momentum=MOMENTUM, adjust_lr_fn="match_rms_adamw")
    for seed in range(2, 5):
        for parameters in (own, other):
            for parameter, gradient in zip(parameters, matrices(seed), strict=True):
                parameter.grad = gradient
        ours.step()
        theirs.step()
    for start, mine, its in zip(matrices(1), own, other, strict=True):
        assert (mine - its).norm().item() < 0.03 * (mine - start).norm().item()


def test_all_else_is_changed_by_adamw() -> None:
    own, other = (nn.ParameterList(matrices(1)) for _ in range(2))
    ours = Muon([{"params": list(own), "lr": 0.02, "weight_decay": 0.1, "matrices": False}])
    theirs = torch.optim.AdamW(other, lr=0.02, weight_decay=0.1, foreach=True)
    for seed in range(2, 5):
        for parameters in (own, other):
            for parameter, gradient in zip(parameters, matrices(seed), strict=True):
                parameter.grad = gradient
        own[1].grad = other[1].grad = None  # no gradient, no change
        ours.step()
        theirs.step()
    assert all(torch.equal(mine, its) for mine, its in zip(own, other, strict=True))


def test_it_goes_on_from_its_state() -> None:
    def stepped(parameters: nn.ParameterList, optimizer: Muon, seeds: range) -> None:
        for seed in seeds:
            for parameter, gradient in zip(parameters, matrices(seed), strict=True):
                parameter.grad = gradient
            optimizer.step()

    def made(parameters: nn.ParameterList) -> Muon:
        half = len(parameters) // 2
        return Muon(
            [
                {"params": list(parameters)[:half], "lr": 0.1, "matrices": True},
                {"params": list(parameters)[half:], "lr": 0.1, "matrices": False},
            ]
        )

    whole = nn.ParameterList(matrices(0))
    first = made(whole)
    stepped(whole, first, range(1, 4))
    resumed = copy.deepcopy(whole)
    second = made(resumed)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    stepped(whole, first, range(4, 6))
    stepped(resumed, second, range(4, 6))
    assert all(torch.equal(mine, its) for mine, its in zip(whole, resumed, strict=True))


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
def test_the_matrices_of_the_encoder_behind_its_embedding_are_turned(optimizer: str) -> None:
    encoder = tiny_encoder()
    head = ScalarHead(str(encoder.irreps_out), KNOWN["band_gap"])
    rates = dict.fromkeys(encoder.stages(), 1.0)
    groups = parameter_groups(encoder.stages(), rates, [head], Optimization(optimizer=optimizer))  # type: ignore[arg-type]
    turned = {id(parameter) for group in groups if group["matrices"] for parameter in group["params"]}
    expected = {
        id(parameter)
        for name, parameter in encoder.named_parameters()
        if parameter.dim() == 2 and not name.startswith("embedding")
    }
    assert turned == (expected if optimizer == "muon" else set())
    assert MultiTaskModule(encoder, {"a": head}, Optimization(optimizer=optimizer)).make_optimizer()  # type: ignore[arg-type]
