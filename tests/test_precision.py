"""Fewer bits in matrix products only: sums, losses and what a card says of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from conftest import Command
from testing import QUIET, TINY, batch_of, close, compounds, tiny_encoder

from datamodules.properties import KNOWN
from foundation.checkpoint import find_members, load_checkpoint
from foundation.training.module import MultiTaskModule
from heads import ScalarHead
from heads.pooling import MeanAndAttention, crystal_mean, crystal_sum


@pytest.fixture
def module() -> MultiTaskModule:
    encoder = tiny_encoder()
    torch.manual_seed(1)
    return MultiTaskModule(encoder, {"band_gap": ScalarHead(str(encoder.irreps_out), KNOWN["band_gap"])}).train()


@pytest.fixture
def _as_before() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(before)


def test_a_step_in_bfloat16_is_close_and_its_sums_are_single_precision(module: MultiTaskModule) -> None:
    batch = batch_of(compounds(24), module.encoder.recipe, [[0.0]] * 24)
    sums, _, exact = module.losses(batch)
    gradients = torch.autograd.grad(sums.sum(), list(module.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded_sums, _, rounded = module.losses(batch)
    rounded_gradients = torch.autograd.grad(rounded_sums.sum(), list(module.parameters()))
    assert rounded_sums.dtype == rounded["band_gap"].scaled.dtype == torch.float32
    # bfloat16 keeps 8 bits, 0.4 % a product.
    close(rounded["band_gap"].scaled, exact["band_gap"].scaled, 0.02)
    assert not torch.equal(rounded["band_gap"].scaled, exact["band_gap"].scaled), (
        "nothing was rounded: this tests nothing"
    )
    assert all(gradient.dtype == torch.float32 for gradient in rounded_gradients)
    close(*(torch.cat([g.flatten() for g in each]) for each in (rounded_gradients, gradients)), 0.05)


def test_sums_over_neighbours_are_single_precision_in_every_block(
    module: MultiTaskModule, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = batch_of(compounds(6), module.encoder.recipe, [[0.0]] * 6)
    dtypes: list[tuple[torch.dtype, torch.dtype]] = []
    index_add_ = torch.Tensor.index_add_

    def watched(self: torch.Tensor, dim: int, index: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        dtypes.append((self.dtype, source.dtype))
        return index_add_(self, dim, index, source)

    monkeypatch.setattr(torch.Tensor, "index_add_", watched)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        module.encoder(batch)
    assert len(dtypes) >= 3 * len(module.encoder.blocks)  # one for every degree
    assert set(dtypes) == {(torch.float32, torch.float32)}


def test_heads_and_losses_are_outside_of_autocast(module: MultiTaskModule, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same features from the encoder, autocast changes no bit of a loss."""
    batch = batch_of(compounds(6), module.encoder.recipe, [[1.0]] * 6)
    features = module.encoder(batch).detach()
    monkeypatch.setattr(module.encoder, "forward", lambda batch, known: features)
    sums, _, _ = module.losses(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module.losses(batch)[0], sums)


def test_pooling_sums_in_single_precision() -> None:
    batch = batch_of(compounds(3))
    values = torch.randn(len(batch.z), 8).to(torch.bfloat16)
    for pool in (crystal_sum, crystal_mean):
        found = pool(values, batch)
        assert found.dtype == torch.float32
        close(found.double(), pool(values.double(), batch), 1e-6)
    attention = MeanAndAttention(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert attention(values.float(), batch).dtype == torch.float32


def test_a_run_in_bfloat16_says_so(foundation: Command, tiny_store: Path, tmp_path: Path) -> None:
    words = ["pretrain", "--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET]
    words += ["--trainer.max_epochs", 1, "--trainer.precision", "bf16-mixed", "--out", tmp_path / "run"]
    assert foundation(*words).code == 0
    checkpoint = load_checkpoint(find_members(str(tmp_path / "run"))[0])
    assert checkpoint.card["numerics"]["precision"] == "bf16-mixed"
    assert {tensor.dtype for tensor in checkpoint.weights.values()} <= {torch.float32, torch.int64}
    assert "trained eager, precision bf16-mixed, matrix products highest" in foundation("inspect", tmp_path / "run").out


@pytest.mark.usefixtures("_as_before")
def test_the_precision_of_matrix_products_is_one_setting(foundation: Command, tiny_store: Path, tmp_path: Path) -> None:
    words = ["pretrain", "--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET]
    words += ["--trainer.max_epochs", 1, "--matmul-precision", "high", "--out", tmp_path / "run"]
    assert foundation(*words).code == 0
    assert torch.get_float32_matmul_precision() == "high"
    assert load_checkpoint(find_members(str(tmp_path / "run"))[0]).card["numerics"]["matmul_precision"] == "high"


@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "16-mixed"])
def test_a_precision_that_rounds_weights_or_sums_is_refused(
    foundation: Command, tiny_store: Path, tmp_path: Path, precision: str
) -> None:
    words = ["pretrain", "--data.store", tiny_store, "--data.properties", "band_gap", *TINY, *QUIET]
    answer = foundation(*words, "--trainer.precision", precision, "--out", tmp_path / "run")
    assert (answer.code, answer.out) == (2, "")
    assert f"error: --trainer.precision {precision}: choose 32-true, bf16-mixed or 64-true" in answer.err
    assert not (tmp_path / "run").exists()
