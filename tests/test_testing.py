"""The checks of symmetry catch encoders that are broken, each the one made for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import testing
import torch
from testing import close, random_crystal, rock_salt, tiny_encoder
from torch import Tensor, nn

from datamodules.batching import CrystalBatch, GraphArrays, build_graphs
from foundation.encoder.encoder import EquivariantEncoder

Fault = Callable[[Tensor, CrystalBatch], Tensor]
Check = Callable[[Any, Any, float], None]


class Broken(nn.Module):
    """An encoder whose features are spoilt."""

    def __init__(self, encoder: EquivariantEncoder, fault: Fault) -> None:
        super().__init__()
        self.encoder, self.fault = encoder, fault
        self.recipe, self.irreps_out = encoder.recipe, encoder.irreps_out

    def forward(self, batch: CrystalBatch) -> Tensor:
        return self.fault(self.encoder(batch).clone(), batch)


def adds_x(features: Tensor, batch: CrystalBatch) -> Tensor:
    features[:, 0].index_add_(0, batch.edge_index[1], batch.edge_vector[:, 0].square())
    return features


def adds_pseudovector(features: Tensor, batch: CrystalBatch) -> Tensor:
    vectors = features[:, 8:20].view(-1, 4, 3)
    crossed = torch.linalg.cross(vectors[:, 0], vectors[:, 1])
    features[:, 8:11] += crossed / crossed.abs().max() * vectors.abs().max()
    return features


def sums_over_atoms(features: Tensor, batch: CrystalBatch) -> Tensor:
    sums = features.new_zeros(len(batch.num_atoms)).index_add(0, batch.batch, features[:, 0])
    features[:, 0] += sums[batch.batch]
    return features


def leaks_across_batch(features: Tensor, batch: CrystalBatch) -> Tensor:
    features[:, :8] -= 0.1 * features[:, :8].mean(dim=0)
    return features


def knows_positions_in_list(features: Tensor, batch: CrystalBatch) -> Tensor:
    features[:, 0] += 0.01 * torch.arange(len(features))
    return features


def counts_nearest_neighbours(features: Tensor, batch: CrystalBatch) -> Tensor:
    distance = batch.edge_vector.norm(dim=1)
    features[:, 0] += (distance < distance.min() + 1e-6).sum()
    return features


@pytest.mark.parametrize(
    ("check", "fault"),
    [
        (testing.assert_equivariant, adds_x),
        (lambda *given: testing.assert_equivariant(*given, improper=True), adds_pseudovector),
        (testing.assert_supercell_invariant, sums_over_atoms),
        (testing.assert_batch_invariant, leaks_across_batch),
        (testing.assert_permutation_equivariant, knows_positions_in_list),
        (testing.assert_noise_stable, counts_nearest_neighbours),
    ],
    ids=["rotation", "inversion", "supercell", "batch", "permutation", "noise"],
)
def test_a_broken_encoder_is_caught(check: Check, fault: Fault) -> None:
    encoder = tiny_encoder()
    # Noise is told apart where distances are degenerate, the other faults where nothing is symmetric.
    crystal = rock_salt() if fault is counts_nearest_neighbours else random_crystal()
    check(encoder, crystal, 1e-3)
    with pytest.raises(AssertionError, match="differs by"):
        check(Broken(encoder, fault), crystal, 1e-3)


def test_a_graph_without_far_images_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    def near_images(crystals: Any, recipe: Any) -> GraphArrays:
        graphs = build_graphs(crystals, recipe)
        keep = (abs(graphs.shift) <= 1).all(axis=1)
        counts = [int(keep[a:b].sum()) for a, b in zip(graphs.edge_ptr[:-1], graphs.edge_ptr[1:], strict=True)]
        ptr = torch.tensor([0, *counts]).cumsum(0).numpy()
        parts = {name: getattr(graphs, name)[keep] for name in ("sender", "receiver", "shift")}
        return GraphArrays(**(vars(graphs) | parts | {"edge_ptr": ptr}))

    crystal = random_crystal(2)
    testing.assert_cell_invariant(tiny_encoder(), crystal, 1e-3)
    monkeypatch.setattr(testing, "build_graphs", near_images)
    with pytest.raises(AssertionError, match="differs by"):
        testing.assert_cell_invariant(tiny_encoder(), crystal, 1e-3)


def test_features_that_are_zero_prove_nothing() -> None:
    def silent(features: Tensor, batch: CrystalBatch) -> Tensor:
        return features * 0

    with pytest.raises(AssertionError, match="tests nothing"):
        testing.assert_equivariant(Broken(tiny_encoder(), silent), random_crystal(), 1e-3)


def test_not_a_number_is_not_close() -> None:
    with pytest.raises(AssertionError):
        close(torch.tensor([float("nan")]), torch.tensor([1.0]), 1e-3)
