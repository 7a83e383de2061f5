"""The encoder knows the symmetries of crystals; its parts are what they claim to be."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import testing
import torch
from e3nn import o3
from testing import atom_features, batch_of, close, compounds, default_dtype, random_crystal, rock_salt, tiny_encoder

from datamodules.crystals import Crystal
from foundation.encoder.edge import EDGES_AT_A_TIME, EdgeConvolution, EdgeGeometry
from foundation.encoder.encoder import EquivariantEncoder
from foundation.encoder.irreps import split_channels
from foundation.encoder.products import ChannelwiseProduct, bounded, inner, squared_norm
from foundation.encoder.radial import envelope

TOLERANCE = {torch.float32: 2e-5, torch.float64: 1e-10}


@pytest.fixture(params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def tolerance(request: pytest.FixtureRequest) -> Iterator[float]:
    """Work in single, then in double precision; the value is the tolerance that goes with it."""
    with default_dtype(request.param):
        yield TOLERANCE[request.param]


@pytest.fixture(params=["one atom", "low symmetry", "many atoms", "distorted perovskite"])
def crystal(request: pytest.FixtureRequest) -> Crystal:
    return {
        "one atom": Crystal(
            np.array([[2.5, 0.1, 0], [0.3, 3.1, 0.2], [0.5, 0, 4.0]]), np.zeros((1, 3)), np.array([28])
        ),
        "low symmetry": random_crystal(),
        "many atoms": random_crystal(17, seed=1),
        "distorted perovskite": compounds(3)[2],
    }[request.param]


@pytest.mark.parametrize("improper", [False, True], ids=["rotation", "inversion"])
def test_equivariance(tolerance: float, improper: bool) -> None:
    for crystal in (random_crystal(), random_crystal(17, seed=1), compounds(3)[2]):
        testing.assert_equivariant(tiny_encoder(), crystal, tolerance, improper=improper)


def test_equivariance_at_full_size() -> None:
    torch.manual_seed(0)
    testing.assert_equivariant(EquivariantEncoder().eval(), random_crystal(), 1e-4, improper=True)


def test_permutation_of_atoms(tolerance: float, crystal: Crystal) -> None:
    testing.assert_permutation_equivariant(tiny_encoder(), crystal, tolerance)


def test_choice_of_cell(tolerance: float, crystal: Crystal) -> None:
    testing.assert_cell_invariant(tiny_encoder(), crystal, tolerance)


def test_supercell(tolerance: float, crystal: Crystal) -> None:
    testing.assert_supercell_invariant(tiny_encoder(), crystal, tolerance)


def test_company_in_the_batch(tolerance: float, crystal: Crystal) -> None:
    testing.assert_batch_invariant(tiny_encoder(), crystal, tolerance)


def test_edges_taken_a_few_at_a_time_give_the_same(
    tolerance: float, crystal: Crystal, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, batch = tiny_encoder(), batch_of([crystal])
    with torch.no_grad():
        whole = encoder(batch)
        monkeypatch.setitem(EDGES_AT_A_TIME, "cpu", 5)
        close(encoder(batch), whole, tolerance)


def test_noise_far_below_physical_precision(tolerance: float, crystal: Crystal) -> None:
    testing.assert_noise_stable(tiny_encoder(), crystal, 1e-4)


def test_noise_in_a_perfect_crystal_whose_distances_are_degenerate(tolerance: float) -> None:
    # Vectors vanish there by symmetry: what noise makes of them is measured against the scalars.
    testing.assert_noise_stable(tiny_encoder(), rock_salt(), 1e-4)


def test_an_atom_without_neighbours_has_finite_features() -> None:
    alone = Crystal(30 * np.eye(3), np.zeros((1, 3)), np.array([2]))
    batch = batch_of([alone, random_crystal()], tiny_encoder().recipe)
    assert int((batch.batch[batch.edge_index[1]] == 0).sum()) == 0
    assert torch.isfinite(tiny_encoder()(batch)).all()


def test_mirror_images_differ_only_in_their_handedness() -> None:
    """Scalars of natural parity are the same for both hands; a head on them cannot tell them apart."""
    crystal = random_crystal()
    mirrored = Crystal(-crystal.lattice, crystal.frac_coords, crystal.numbers)
    scalars = tiny_encoder().irreps_out.slices()[0]
    close(atom_features(tiny_encoder(), mirrored)[:, scalars], atom_features(tiny_encoder(), crystal)[:, scalars], 1e-4)


def test_stages_hold_every_parameter_once() -> None:
    encoder = tiny_encoder()
    stages = encoder.stages()
    assert list(stages) == ["embedding", "blocks.0.edge", "blocks.0.node", "blocks.1.edge", "blocks.1.node", "readout"]
    held = [id(parameter) for stage in stages.values() for parameter in stage.parameters()]
    assert sorted(held) == sorted(id(parameter) for parameter in encoder.parameters())


def test_every_parameter_gets_a_gradient() -> None:
    encoder = tiny_encoder().train()
    encoder(batch_of(compounds(3), encoder.recipe)).square().sum().backward()
    without = [name for name, p in encoder.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert without == []


def test_irreps_that_the_encoder_does_not_speak_are_refused() -> None:
    for irreps in ("8x0e", "8x0e+4x1e+2x2e", "8x0e+4x1o", "4x1o+8x0e+2x2e", "8x0e+4x1o+2x2e+1x3o"):
        with pytest.raises(ValueError, match="irreps"):
            EquivariantEncoder(irreps=irreps)


@pytest.mark.parametrize("degrees", [(1, 1, 2), (1, 2, 1), (2, 2, 2), (1, 1, 0), (2, 1, 3)])
def test_products_are_those_of_e3nn(degrees: tuple[int, int, int]) -> None:
    l1, l2, l3 = degrees
    channels = 5
    first, second = torch.randn(7, 2 * l1 + 1, channels), torch.randn(7, 2 * l2 + 1, channels)
    irreps = [o3.Irreps([(channels, (degree, (-1) ** degree))]) for degree in degrees]
    reference = o3.TensorProduct(
        *irreps,
        [(0, 0, 0, "uuu", False)],
        irrep_normalization="component",
        path_normalization="element",
    )
    expected = reference(first.transpose(1, 2).flatten(1), second.transpose(1, 2).flatten(1))
    actual = ChannelwiseProduct(l1, l2, l3)(first, second).transpose(1, 2).flatten(1)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("first", [True, False], ids=["scalars only", "all degrees"])
def test_messages_are_products_of_e3nn(first: bool) -> None:
    """Paths 0 x l -> l, l x 0 -> l and l x l -> 0, weighted, summed at the receiver and mixed.

    With e3nn's "component" normalisation and without that of paths, its product (l, l, 0) is ours divided by
    sqrt(2l + 1), and the two others are ours: no path is rescaled for how many lead to the same degree.
    """
    with default_dtype(torch.float64):
        torch.manual_seed(0)
        atoms, count, irreps = 5, 40, o3.Irreps("6x0e+4x1o+3x2e")
        channels, degrees = split_channels(irreps), range(3)
        layer = EdgeConvolution(str(irreps), num_radial=8, radial_hidden=7, num_neighbors=9.0, first=first)
        features = [torch.randn(atoms, 6), *(torch.randn(atoms, 2 * k + 1, channels[k]) for k in (1, 2))]
        vector = torch.nn.functional.normalize(torch.randn(count, 3), dim=1)
        edges = EdgeGeometry(
            sender=torch.randint(atoms, (count,)),
            receiver=torch.randint(atoms, (count,)),
            radial=torch.randn(count, 8),
            envelope=torch.rand(count),
            harmonics=[o3.spherical_harmonics(k, vector, False, normalization="component") for k in (1, 2)],
        )
        actual = layer(features[:1] if first else features, edges)

        scalars = layer.norm(features[0])
        hidden = layer.radial_in(edges.radial) + layer.sender_in(scalars)[edges.sender]
        hidden = torch.nn.functional.silu(hidden + layer.receiver_in(scalars)[edges.receiver])
        weights = (layer.radial_out(hidden) * edges.envelope[:, None]).split(layer.paths, dim=1)
        # What is sent: scalars to be kept, those to be multiplied with each harmonic, and of higher degrees those to
        # be contracted with it and those to be passed on.
        parts = list(layer.send_scalars(scalars).split(channels, dim=1))
        terms = [(0, 0, 0), (0, 1, 1), (0, 2, 2)]  # degrees of what is sent, of the harmonic, and of the message
        if not first:
            sent = [send(part).chunk(2, dim=2) for send, part in zip(layer.send_higher, features[1:], strict=True)]
            parts += [part for kind in (0, 1) for part in (sent[0][kind], sent[1][kind])]
            terms += [(1, 1, 0), (2, 2, 0), (1, 0, 1), (2, 0, 2)]
        harmonics = [torch.ones(count, 1), *edges.harmonics]
        messages: list[list[torch.Tensor]] = [[] for _ in degrees]
        for (sent_degree, degree, out), part, weight in zip(terms, parts, weights, strict=True):
            mul = part.shape[-1]
            kinds = [[(mul, (sent_degree, (-1) ** sent_degree))], [(1, (degree, (-1) ** degree))]]
            product = o3.TensorProduct(
                *map(o3.Irreps, kinds),
                o3.Irreps([(mul, (out, (-1) ** out))]),
                [(0, 0, 0, "uvu", True)],
                irrep_normalization="component",
                path_normalization="none",
                shared_weights=False,
            )
            rows = part[edges.sender]
            flat = rows if sent_degree == 0 else rows.transpose(1, 2).flatten(1)
            factor = (2 * degree + 1) ** 0.5 if out == 0 else 1.0
            messages[out].append(factor * product(flat, harmonics[degree], weight))
        together = [torch.cat(messages[0], dim=1), *(sum(messages[k][1:], messages[k][0]) for k in (1, 2))]
        for degree, (message, mix) in enumerate(zip(together, [layer.mix_scalars, *layer.mix_higher], strict=True)):
            total = torch.zeros(atoms, message.shape[1]).index_add_(0, edges.receiver, message) / 3.0
            if degree:
                total = total.unflatten(1, (channels[degree], 2 * degree + 1)).transpose(1, 2)
            torch.testing.assert_close(actual[degree], mix(total), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("degrees", [(1, 1, 1), (1, 1, 3), (2, 2, 5)])
def test_products_of_unnatural_parity_are_refused(degrees: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="natural parity"):
        ChannelwiseProduct(*degrees)


def test_bounded_features_stay_small_and_small_ones_stay() -> None:
    small, large = 1e-4 * torch.randn(4, 5, 3), 1e6 * torch.randn(4, 5, 3)
    torch.testing.assert_close(bounded(small), small)
    assert bounded(large).square().mean(dim=(1, 2)).max() < 1.0 + 1e-5
    assert bounded(torch.zeros(1, 5, 3)).abs().max() == 0
    torch.testing.assert_close(inner(small, small), squared_norm(small))


def test_envelope_falls_smoothly_to_zero_at_the_cutoff() -> None:
    with default_dtype(torch.float64):
        distance = torch.linspace(3.0, 4.2, 1201, requires_grad=True)
        weight = envelope(distance, torch.full((1201,), 4.0), 0.5)
        weight.sum().backward()
    assert distance.grad is not None
    assert bool((weight[:500] == 1).all())
    assert bool((weight[1001:] == 0).all())
    assert float(distance.grad.diff().abs().max()) < 0.06  # of a slope that reaches 3: no kink
    assert bool((distance.grad <= 0).all())
