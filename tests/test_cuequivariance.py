"""The optional cuEquivariance backend equals the plain products, in values, gradients and weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from testing import batch_of, close, compounds, default_dtype, tiny_encoder

from datamodules.errors import InputError
from datamodules.properties import KNOWN
from foundation.adaptation import Adaptation
from foundation.checkpoint import find_members, load_checkpoint
from foundation.encoder.cuequivariance import CuEquivarianceProduct
from foundation.encoder.products import ChannelwiseProduct
from foundation.strategies.full import Full
from foundation.training.optimization import Optimization
from foundation.training.spec import HeadSpec

PATHS = [(1, 1, 2), (1, 2, 1), (2, 2, 2), (1, 1, 0), (2, 2, 0), (0, 2, 2), (2, 1, 1)]
CHANNELS = 5


@pytest.fixture
def backend() -> None:
    pytest.importorskip("cuequivariance_torch", reason="the extra [cuequivariance] is not installed")


@pytest.mark.usefixtures("backend")
@pytest.mark.parametrize("path", PATHS, ids=str)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)], ids=str)
def test_it_equals_the_plain_product(path: tuple[int, int, int], dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    l1, l2, l3 = path
    with default_dtype(dtype):
        first = torch.randn(7, 2 * l1 + 1, CHANNELS, requires_grad=True)
        second = torch.randn(7, 2 * l2 + 1, CHANNELS, requires_grad=True)
        weight = torch.randn(7, 2 * l3 + 1, CHANNELS)
        product = CuEquivarianceProduct(*path, CHANNELS)
        found, expected = product(first, second), ChannelwiseProduct(*path)(first, second)
        assert expected.abs().max() > 0.1
        close(found.detach(), expected.detach(), tolerance)
        for one, two in zip(
            torch.autograd.grad((found.sin() * weight).sum(), (first, second)),
            torch.autograd.grad((expected.sin() * weight).sum(), (first, second)),
            strict=True,
        ):
            close(one, two, tolerance)


@pytest.mark.usefixtures("backend")
def test_it_takes_features_that_are_not_contiguous_and_single_rows() -> None:
    feature = torch.randn(3, CHANNELS, 6).transpose(1, 2)[:, ::2]  # [3, 3, CHANNELS]
    product, plain = CuEquivarianceProduct(1, 1, 2, CHANNELS), ChannelwiseProduct(1, 1, 2)
    close(product(feature, feature), plain(feature, feature), 1e-5)
    close(product(feature[:1], feature[:1]), plain(feature[:1], feature[:1]), 1e-5)


@pytest.mark.usefixtures("backend")
def test_it_adds_nothing_to_a_checkpoint() -> None:
    product = CuEquivarianceProduct(2, 2, 2, CHANNELS)
    assert product.state_dict() == {}
    assert list(product.parameters()) == []
    assert [name for name, _ in product.named_buffers()] != []  # its constants still move with the module
    moved = product.double()
    assert moved(torch.randn(2, 5, CHANNELS).double(), torch.randn(2, 5, CHANNELS).double()).dtype == torch.float64


@pytest.mark.usefixtures("backend")
def test_a_path_of_unnatural_parity_is_refused() -> None:
    with pytest.raises(ValueError, match="no product of natural parity from 1 x 1 to 1"):
        CuEquivarianceProduct(1, 1, 1, CHANNELS)


@pytest.mark.usefixtures("backend")
def test_an_encoder_predicts_the_same_with_either_backend() -> None:
    plain = tiny_encoder()
    other = tiny_encoder(seed=1, products="cuequivariance")
    other.load_state_dict(plain.state_dict())  # strict: the backend has no weights of its own
    batch = batch_of(compounds(4), plain.recipe)
    close(other(batch).detach(), plain(batch).detach(), 1e-5)


@pytest.mark.usefixtures("backend")
def test_a_checkpoint_is_adapted_with_either_backend(tiny_run: Path) -> None:
    checkpoint = load_checkpoint(find_members(str(tiny_run))[0])
    head = HeadSpec("heads.ScalarHead", {}, KNOWN["shear_modulus"])
    for given, products in (({}, "plain"), ({"products": "cuequivariance"}, "cuequivariance")):
        made = Adaptation.of(head, given, Optimization(), Full(), checkpoint).spec
        assert made.encoder == checkpoint.spec.encoder | ({"products": products} if given else {})
        assert (
            made.build_encoder()
            .blocks[0]
            .node.product_222.__class__.__name__.startswith("CuEquivariance" if given else "Channelwise")
        )


def test_a_checkpoint_with_the_backend_loads_where_it_is_not_installed(
    tiny_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = load_checkpoint(find_members(str(tiny_run))[0])
    checkpoint.card["spec"]["encoder"]["products"] = "cuequivariance"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    model = checkpoint.build()
    assert isinstance(model.encoder.blocks[0].node.product_222, ChannelwiseProduct)


def test_without_the_library_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'crystal-foundation\[cuequivariance\]'"):
        CuEquivarianceProduct(1, 1, 2, CHANNELS)
