"""The same numbers on a GPU, and the commands from pretraining to prediction on one; skipped where there is none."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Command
from e3nn import o3
from studies import atoms
from testing import TINY, batch_of, close, compounds, random_crystal, tiny_encoder

from datamodules.datamodule import CrystalDataModule
from datamodules.properties import KNOWN
from foundation.benchmarks.rates import run_benchmark
from foundation.checkpoint import find_members, load_checkpoint
from foundation.encoder.cuequivariance import CuEquivarianceProduct
from foundation.encoder.products import ChannelwiseProduct
from foundation.inference import Ensemble
from foundation.training.agreement import Sum
from foundation.training.module import MultiTaskModule
from heads import ScalarHead

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU here")

ON_GPU = ["--wandb", "off", "--trainer.accelerator", "gpu", "--trainer.devices", 1]
BOTH = "formation_energy_per_atom,band_gap"


def module_of(encoder: Any) -> MultiTaskModule:
    torch.manual_seed(1)
    return MultiTaskModule(encoder, {"band_gap": ScalarHead(str(encoder.irreps_out), KNOWN["band_gap"])}).train()


def losses_and_gradients(module: MultiTaskModule, device: str, dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Losses of 24 crystals, and the gradient of their sum, on the CPU."""
    module.to(device)
    batch = batch_of(compounds(24), module.encoder.recipe, [[0.0]] * 24).to(device)
    with torch.autocast("cuda", dtype=dtype, enabled=dtype is not None):
        sums, _, answers = module.losses(batch)
    gradients = torch.autograd.grad(sums.sum(), list(module.parameters()))
    return [answers["band_gap"].scaled.cpu(), torch.cat([gradient.flatten() for gradient in gradients]).cpu()]


def test_losses_and_gradients_are_those_of_the_cpu() -> None:
    module = module_of(tiny_encoder())
    on_cpu, on_gpu = losses_and_gradients(module, "cpu"), losses_and_gradients(module, "cuda")
    for found, expected in zip(on_gpu, on_cpu, strict=True):
        close(found, expected, 1e-4)


def test_what_is_told_waits_for_nothing_that_is_queued_behind_it() -> None:
    told = Sum(torch.tensor([3, 4], device="cuda"))
    torch.cuda._sleep(2_000_000_000)  # about a second
    behind = torch.cuda.Event()
    behind.record()
    assert told.result() == [3, 4]
    assert not behind.query()


def test_fewer_bits_stay_close() -> None:
    module = module_of(tiny_encoder())
    exact, rounded = (losses_and_gradients(module, "cuda", dtype) for dtype in (None, torch.bfloat16))
    close(rounded[0], exact[0], 0.02)
    close(rounded[1], exact[1], 0.05)
    assert not torch.equal(rounded[0], exact[0]), "nothing was rounded: this tests nothing"


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_features_turn_with_the_crystal(compiled: bool) -> None:
    encoder = tiny_encoder().cuda()
    if compiled:
        encoder.compile(dynamic=True)
    crystal, turn = random_crystal(), o3.rand_matrix(dtype=torch.float64)
    turned = replace(crystal, lattice=crystal.lattice @ turn.numpy().T)
    with torch.no_grad():
        before, after = (encoder(batch_of([each], encoder.recipe).to("cuda")).cpu() for each in (crystal, turned))
    close(after, before @ encoder.irreps_out.D_from_matrix(turn.float()).T, 1e-5)


@pytest.mark.parametrize("path", [(1, 1, 2), (1, 2, 1), (2, 2, 2)], ids=str)
@pytest.mark.parametrize("channels", [16, 5])
def test_kernels_of_cuequivariance_equal_the_plain_product(path: tuple[int, int, int], channels: int) -> None:
    pytest.importorskip("cuequivariance_ops_torch", reason="its kernels are not installed")
    l1, l2, _ = path
    first = torch.randn(70, 2 * l1 + 1, channels, device="cuda", requires_grad=True)
    second = torch.randn(70, 2 * l2 + 1, channels, device="cuda", requires_grad=True)
    product = CuEquivarianceProduct(*path, channels).cuda()
    assert product.on_gpu is not product.on_cpu
    found, expected = product(first, second), ChannelwiseProduct(*path)(first, second)
    close(found.detach(), expected.detach(), 1e-5)
    gradients = (torch.autograd.grad(out.sin().sum(), (first, second)) for out in (found, expected))
    for one, two in zip(*gradients, strict=True):
        close(one, two, 1e-5)


def test_an_encoder_with_kernels_of_cuequivariance_trains_as_the_plain_one() -> None:
    pytest.importorskip("cuequivariance_ops_torch", reason="its kernels are not installed")
    plain, other = module_of(tiny_encoder()), module_of(tiny_encoder(products="cuequivariance"))
    other.load_state_dict(plain.state_dict())
    for found, expected in zip(losses_and_gradients(other, "cuda"), losses_and_gradients(plain, "cuda"), strict=True):
        close(found, expected, 1e-4)


@pytest.fixture(scope="module")
def gpu_run(tiny_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a pretraining of one epoch, and a second one resumed."""
    from foundation.cli import main

    folder = tmp_path_factory.mktemp("runs") / "gpu"
    words = ["pretrain", "--data.store", tiny_store, "--data.properties", BOTH, *TINY, *ON_GPU]
    words += ["--compile", "false", "--optimization.schedule_epochs", 2, "--out", folder]
    first = ["--trainer.max_epochs", 1]
    second = ["--trainer.max_epochs", 2, "--resume", folder / "checkpoints" / "last.ckpt"]
    for more in (first, second):
        assert main([str(word) for word in [*words, *more]]) == 0
    return folder


def test_a_run_goes_on(gpu_run: Path) -> None:
    checkpoint = load_checkpoint(find_members(str(gpu_run))[0])
    assert all(torch.isfinite(tensor).all() for tensor in checkpoint.weights.values())
    assert set(json.loads((gpu_run / "metrics.json").read_text())["test"]) == set(BOTH.split(","))


def test_predictions_are_those_of_the_cpu(gpu_run: Path, tiny_store: Path) -> None:
    ensemble = Ensemble([load_checkpoint(find_members(str(gpu_run))[0]).build()])
    assert ensemble.device.type == "cuda"
    data = CrystalDataModule(str(tiny_store))
    data.choose(["band_gap"], ensemble.recipe)
    rows = np.arange(len(data.graphs))
    on_gpu = ensemble.predict_graphs(data.graphs, rows)["band_gap"]
    ensemble.device = torch.device("cpu")
    on_cpu = ensemble.predict_graphs(data.graphs, rows)["band_gap"]
    assert np.abs(on_gpu - on_cpu).max() < 1e-4 * np.abs(on_cpu).max()


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        ("layer_decay", ["--folds", 3]),
        ("auto", ["--budget", "20s"]),
        ("full", ["--trainer.precision", "bf16-mixed"]),
        ("replay", ["--strategy.init_args.store", "STORE"]),
        *((name, []) for name in ("from_scratch", "linear_probe", "last_blocks", "two_body", "gradual", "l2_sp")),
        *((name, []) for name in ("freeze_embedding", "low_rank", "interpolate")),
    ],
)
def test_adapted_and_predicting(
    strategy: str, words: list[Any], gpu_run: Path, tiny_store: Path, tmp_path: Path, foundation: Command
) -> None:
    command = ["adapt", "--pretrained", gpu_run, "--data.store", tiny_store, "--property", "shear_modulus"]
    command += ["--strategy", strategy, *(tiny_store if word == "STORE" else word for word in words)]
    command += [] if strategy == "auto" else ["--compile", "false"]
    answer = foundation(*command, *ON_GPU, "--trainer.max_epochs", 2, "--out", tmp_path / "adapted")
    assert answer.code == 0, answer.err
    crystals = tmp_path / "crystals.jsonl"
    crystals.write_text(
        "".join(json.dumps({"id": crystal.id, "structure": atoms(crystal)}) + "\n" for crystal in compounds(5))
    )
    answer = foundation("predict", tmp_path / "adapted", crystals, "--out", tmp_path / "out.csv")
    assert answer.code == 0, answer.err
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 6


def test_heads_of_every_kind_train_together(tensor_store: Path, tmp_path: Path, foundation: Command) -> None:
    words = ["pretrain", "--config", "configs/pretrain_tensors.yaml", "--data.store", tensor_store, *TINY, *ON_GPU]
    words += ["--compile", "false", "--trainer.max_epochs", 2, "--out", tmp_path / "run"]
    answer = foundation(*words)
    assert answer.code == 0, answer.err
    answer = foundation("evaluate", tmp_path / "run", "--data.store", tensor_store)
    assert answer.code == 0, answer.err


def test_ranked_and_planned(gpu_run: Path, tiny_store: Path, foundation: Command) -> None:
    answer = foundation("rank", gpu_run, "--data.store", tiny_store, "--property", "shear_modulus")
    assert answer.code == 0, answer.err
    answer = foundation("plan", "--data.store", tiny_store, "--gpus", 8, *TINY[:-4])
    assert answer.code == 0, answer.err
    assert torch.cuda.get_device_name() in answer.out


def test_the_benchmark_measures_the_gpu() -> None:
    found = run_benchmark(None, "cuda", 64)
    assert found["train"]["crystals_per_second"] > 0
    assert sum(found["split"].values()) == pytest.approx(1.0)
