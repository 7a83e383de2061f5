"""Displaced atoms: where they go, what is learned from them, and what stays as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from testing import batch_of, close, compounds, default_dtype, random_crystal, tiny_encoder

from datamodules.batching import build_graphs
from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from datamodules.properties import KNOWN
from foundation.checkpoint import TRAINING_ONLY
from foundation.training.denoising import Denoising, DenoisingModule, Displacements
from foundation.training.keyed_noise import child, key_of, normal, uniform
from heads import ScalarHead


def tiny_module(share: float = 0.5, **changes: Any) -> DenoisingModule:
    encoder = tiny_encoder()
    heads = {"band_gap": ScalarHead(str(encoder.irreps_out), KNOWN["band_gap"])}
    return DenoisingModule(encoder, heads, displacements=Displacements(share, **changes))


def test_a_share_of_the_crystals_moves_and_no_centre_does() -> None:
    batch = batch_of(compounds(60) * 10)
    drawn = Denoising("4x0e+2x1o", Displacements(0.3)).draw(batch, 0)
    per_crystal = torch.zeros(600, 3).index_add(0, batch.batch, drawn)
    assert float(per_crystal.abs().max()) < 1e-5
    moved = torch.zeros(600).index_add(0, batch.batch, drawn.abs().sum(dim=1)) > 0
    assert 0.25 < float(moved.float().mean()) < 0.35
    perovskites = (batch.num_atoms == 5)[batch.batch] & moved[batch.batch]
    assert float(drawn[perovskites].std()) == pytest.approx(np.sqrt(4 / 5), rel=0.1)  # less the centre's share


def test_a_crystal_moves_alike_in_every_batch() -> None:
    """So that two processes disturb the crystals of a step as one does."""
    crystals = compounds(40)
    denoising = Denoising("4x0e+2x1o", Displacements(0.5))
    graphs = build_graphs(crystals, NeighborRecipe())
    whole = graphs.gather(range(40))
    together = dict(zip(range(40), denoising.draw(whole, 7, 3).split(whole.num_atoms.tolist()), strict=True))
    for rows in ([5, 2, 39], [39], list(range(20, 40))):
        part = graphs.gather(rows)
        for row, moved in zip(rows, denoising.draw(part, 7, 3).split(part.num_atoms.tolist()), strict=True):
            torch.testing.assert_close(moved, together[row])
    others = [denoising.draw(whole, *words) for words in ((7, 4), (8, 3), (3, 7))]
    assert not any(torch.allclose(other, denoising.draw(whole, 7, 3)) for other in others)


def test_numbers_of_keys_are_random() -> None:
    parents = child(key_of(0, 0), torch.arange(1000))
    keys = child(parents[:, None], torch.arange(600))
    drawn, even = normal(keys.view(1000, 300, 2)), uniform(keys)
    assert 0 < float(even.min()) < 1e-4
    assert 1 - 1e-4 < float(even.max()) < 1
    assert float(even.mean()) == pytest.approx(0.5, abs=0.003)
    assert float(drawn.mean()) == pytest.approx(0, abs=0.006)
    assert float(drawn.var()) == pytest.approx(1, abs=0.01)
    assert float((drawn**4).mean()) == pytest.approx(3, abs=0.1)
    # Neither neighbours of a crystal nor crystals of neighbouring rows have to do with one another.
    for one, two in ((drawn[:, 1:], drawn[:, :-1]), (drawn[1:], drawn[:-1])):
        assert abs(float((one * two).mean())) < 0.006
    # The first numbers of SplitMix64 from 1234567, as its authors' program gives them.
    expected = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [number % 2**64 for number in child(1234567, torch.arange(3)).tolist()] == expected


def test_edges_of_displaced_atoms_are_those_of_the_displaced_crystal() -> None:
    crystal = random_crystal(8)
    with default_dtype(torch.float64):
        batch, denoising = batch_of([crystal]), Denoising("4x0e+2x1o", Displacements(1.0, sigma=0.01))
        before = batch.edge_vector.clone()
        displacement = denoising.draw(batch, 0)
        moved = denoising.displaced(batch, displacement)
        shift = 0.01 * displacement.numpy() @ np.linalg.inv(crystal.lattice)
        expected = batch_of([replace(crystal, frac_coords=crystal.frac_coords + shift)])
    vectors: dict[tuple[int, ...], list[torch.Tensor]] = {tuple(pair): [] for pair in batch.edge_index.T.tolist()}
    for pair, vector in zip(batch.edge_index.T.tolist(), moved.edge_vector, strict=True):
        vectors[tuple(pair)].append(vector)
    found = 0
    for pair, vector in zip(expected.edge_index.T.tolist(), expected.edge_vector, strict=True):
        if tuple(pair) in vectors:  # an edge at the very end of the envelope may differ
            found += any(float((vector - other).abs().max()) < 1e-9 for other in vectors[tuple(pair)])
    assert found > 0.9 * len(batch.edge_vector)
    assert torch.equal(batch.edge_vector, before)


def test_displacements_are_found_in_every_orientation_alike() -> None:
    with default_dtype(torch.float64):
        module = tiny_module(1.0)
        crystal = random_crystal(8)
        turn = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))[0]
        turned = replace(crystal, lattice=crystal.lattice @ turn.T)
        losses = []
        for one, rotation in ((crystal, np.eye(3)), (turned, turn)):
            batch = batch_of([one])
            displacement = module.denoising.draw(batch, 0) @ torch.from_numpy(rotation).T
            features = module.encoder(module.denoising.displaced(batch, displacement), None)
            losses.append(module.denoising.loss(features, displacement, batch).detach())
        close(losses[0], losses[1], 1e-9)


def test_it_can_be_learned() -> None:
    torch.manual_seed(0)
    module = tiny_module(1.0, sigma=0.1).train()
    optimizer = torch.optim.Adam(module.parameters(), lr=3e-3)
    batch = batch_of(compounds(30))
    losses = []
    for step in range(120):
        displacement = module.denoising.draw(batch, step)
        features = module.encoder(module.denoising.displaced(batch, displacement), None)
        loss = module.denoising.loss(features, displacement, batch)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert np.mean(losses[-10:]) < 0.8 * np.mean(losses[:10])


def test_what_only_training_needs_is_left_out_of_a_model() -> None:
    extra = [name for name in tiny_module().state_dict() if name.startswith("denoising.")]
    assert extra
    assert all(name.startswith(TRAINING_ONLY) for name in extra)


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"share": -0.1}, {"sigma": 0.0}, {"weight": -1.0}])
def test_settings_without_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="denoising"):
        Displacements(**wrong)
