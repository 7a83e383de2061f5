"""Neighbour lists: against pymatgen's at a fixed cutoff, and the soft-shell recipe on its own terms."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pymatgen.core import Lattice, Structure
from testing import batch_of, compounds, moved, other_cell, random_crystal, rock_salt, supercell, tiny_encoder

from datamodules.batching import build_graphs, structure_to_graph
from datamodules.crystals import Crystal, as_crystal
from datamodules.graph import NeighborRecipe, fixed_cutoff_edges, neighbor_list

CUTOFF = 4.0
RECIPE = NeighborRecipe()
ALONE = Crystal(25 * np.eye(3), np.zeros((1, 3)), np.array([2]), "alone")
THIN = Crystal(np.array([[2.5, 0, 0], [-1.2, 2.2, 0], [0.3, 0.4, 14.0]]), np.zeros((1, 3)), np.array([6]), "thin")
SYNTHETIC = [rock_salt(), ALONE, THIN, random_crystal(), random_crystal(17, seed=1), other_cell(random_crystal(5))]
by_id = pytest.mark.parametrize("crystal", [*SYNTHETIC, *compounds(6)], ids=lambda crystal: crystal.id or "rock salt")


def edges(receiver: Any, sender: Any, shift: Any, distance: Any) -> tuple[Any, Any]:
    """[E, 5] receiver, sender and image, sorted, and [E] distances in that order."""
    names = np.column_stack([receiver, sender, np.asarray(shift).reshape(-1, 3)]).astype(np.int64)
    order = np.lexsort(names.T)
    return names[order], np.asarray(distance)[order]


def assert_same(one: tuple[Any, Any], two: tuple[Any, Any]) -> None:
    np.testing.assert_array_equal(one[0], two[0])
    np.testing.assert_allclose(one[1], two[1], atol=1e-8)


def as_structure(crystal: Crystal) -> Structure:
    return Structure(Lattice(crystal.lattice), crystal.numbers.tolist(), crystal.frac_coords)


def pymatgen_in_python(crystal: Crystal) -> tuple[Any, Any]:
    """pymatgen's implementation in Python, which shares no code with the compiled one that we call."""
    rows = [
        (index, site.index, *site.image, site.nn_distance)
        for index, sites in enumerate(as_structure(crystal).get_all_neighbors_py(CUTOFF))
        for site in sites
    ]
    table = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return edges(table[:, 0], table[:, 1], table[:, 2:5], table[:, 5])


@by_id
def test_fixed_cutoff_finds_what_pymatgen_finds(crystal: Crystal) -> None:
    found = edges(*fixed_cutoff_edges(crystal, CUTOFF))
    assert_same(found, pymatgen_in_python(crystal))
    assert_same(found, edges(*as_structure(crystal).get_neighbor_list(CUTOFF)))


def real_crystals(file: Path, count: int) -> Iterator[Crystal]:
    with gzip.open(file, "rt") as stream:
        for number, line in enumerate(stream):
            if number == 50 * count:
                return
            if number % 50 == 0:
                made = json.loads(line)["structure"]
                yield as_crystal(Structure(made["lattice_mat"], made["elements"], made["coords"]))


def test_fixed_cutoff_on_500_real_crystals(shared_data: Path) -> None:
    sizes = []
    for number, crystal in enumerate(real_crystals(shared_data / "mp_crysxpp" / "data.jsonl.gz", 500)):
        found = edges(*fixed_cutoff_edges(crystal, CUTOFF))
        assert_same(found, edges(*as_structure(crystal).get_neighbor_list(CUTOFF)))
        if number % 10 == 0:
            assert_same(found, pymatgen_in_python(crystal))
        sizes.append(len(found[0]))
    assert len(sizes) == 500
    assert sum(sizes) > 50_000


@by_id
def test_a_shell_holds_k_neighbours_and_all_within_its_cutoff(crystal: Crystal) -> None:
    found = neighbor_list(crystal, RECIPE)
    receiver, _, _, distance = fixed_cutoff_edges(crystal, RECIPE.max_cutoff)
    own = edge_lengths(crystal, found)
    for atom in range(len(crystal)):
        every = np.sort(distance[receiver == atom])
        kth = every[RECIPE.num_neighbors - 1] if len(every) >= RECIPE.num_neighbors else np.inf
        assert found.cutoff[atom] == pytest.approx(min(kth + RECIPE.shell_width, RECIPE.max_cutoff))
        np.testing.assert_allclose(np.sort(own[found.receiver == atom]), every[every < found.cutoff[atom]], atol=1e-8)
    assert (np.diff(found.receiver) >= 0).all()


def edge_lengths(crystal: Crystal, found: Any) -> Any:
    difference = crystal.frac_coords[found.sender] + found.shift - crystal.frac_coords[found.receiver]
    return np.linalg.norm(difference @ crystal.lattice, axis=1)


@pytest.mark.parametrize(
    "recipe", [NeighborRecipe(4, 0.2, 6.0), NeighborRecipe(40, 1.0, 12.0), NeighborRecipe(12, 0.5, 3.0)]
)
def test_the_recipe_is_a_recipe(recipe: NeighborRecipe) -> None:
    crystal = random_crystal()
    found = neighbor_list(crystal, recipe)
    counts = np.bincount(found.receiver, minlength=len(crystal))
    assert found.cutoff.max() <= recipe.max_cutoff
    assert (edge_lengths(crystal, found) < found.cutoff[found.receiver]).all()
    assert ((counts >= recipe.num_neighbors) | (found.cutoff == recipe.max_cutoff)).all()
    assert recipe.key != RECIPE.key


def test_an_isolated_atom_has_no_edges() -> None:
    graphs = build_graphs([random_crystal(), ALONE], RECIPE)
    assert graphs.num_edges[1] == 0
    assert graphs.edges_per_atom(1).tolist() == [0]
    batch = structure_to_graph(ALONE)
    assert (batch.edge_index.shape, batch.edge_vector.shape) == ((2, 0), (0, 3))


def test_vectors_of_a_batch_are_those_of_its_crystals() -> None:
    crystals = SYNTHETIC[:1] + SYNTHETIC[2:]
    graphs = build_graphs(crystals, RECIPE)
    rows = [3, 0, 3, 1]
    batch = graphs.gather(rows)
    assert batch.row.tolist() == rows
    assert batch.num_atoms.tolist() == [len(crystals[row]) for row in rows]
    vectors, numbers = [], []
    for row in rows:
        found = neighbor_list(crystals[row], RECIPE)
        vectors.append(edge_lengths(crystals[row], found))
        numbers.append(crystals[row].numbers)
    np.testing.assert_allclose(batch.edge_vector.norm(dim=1).numpy(), np.concatenate(vectors), rtol=1e-5)
    np.testing.assert_array_equal(batch.z.numpy(), np.concatenate(numbers))
    assert torch.equal(batch.batch[batch.edge_index[0]], batch.batch[batch.edge_index[1]])


@pytest.mark.parametrize("crystals", [SYNTHETIC, [ALONE, THIN, THIN]], ids=["all sizes", "one atom each"])
def test_a_part_of_a_batch_is_the_batch_of_that_part(crystals: list[Crystal]) -> None:
    graphs = build_graphs(crystals, RECIPE)
    batch = graphs.gather(range(len(crystals)))
    batch.shaped = {"dielectric_total": torch.randn(len(crystals), 3, 3), "magmom_site": torch.randn(len(batch.z))}
    kept = torch.arange(len(crystals)) % 2 == 1
    part, atoms = batch.part(kept)
    expected = graphs.gather(kept.nonzero()[:, 0].numpy())
    for name in ("z", "batch", "num_atoms", "volume", "edge_index", "edge_vector", "cutoff", "row"):
        assert torch.equal(part[name], expected[name]), name
    assert torch.equal(batch.z[atoms], expected.z)
    assert torch.equal(part.shaped["dielectric_total"], batch.shaped["dielectric_total"][kept])
    assert torch.equal(part.shaped["magmom_site"], batch.shaped["magmom_site"][atoms])


@by_id
def test_noise_hardly_changes_cutoffs(crystal: Crystal) -> None:
    before, after = neighbor_list(crystal, RECIPE).cutoff, neighbor_list(moved(crystal, 1e-5), RECIPE).cutoff
    np.testing.assert_allclose(after, before, atol=4e-5)


def test_a_supercell_repeats_the_shells() -> None:
    crystal = random_crystal()
    one, two = neighbor_list(crystal, RECIPE), neighbor_list(supercell(crystal, (2, 2, 1)), RECIPE)
    np.testing.assert_allclose(two.cutoff, np.repeat(one.cutoff, 4))
    counts = np.bincount(one.receiver, minlength=len(crystal))
    np.testing.assert_array_equal(np.bincount(two.receiver), np.repeat(counts, 4))


def test_features_are_continuous_where_a_neighbour_enters_the_shell() -> None:
    """An atom pulled across the cutoff of others: steps of the features shrink with the steps of the atom."""
    crystal, encoder = random_crystal(8, seed=5), tiny_encoder()

    def largest_step(count: int) -> tuple[float, set[int]]:
        path = np.linspace(0.0, 0.04, count + 1)
        crystals = [replace(crystal, frac_coords=crystal.frac_coords + np.eye(8)[:, :1] * [x, 0, 0]) for x in path]
        graphs = build_graphs(crystals, RECIPE)
        with torch.no_grad():
            features = encoder(batch_of(crystals)).view(count + 1, 8, -1)
        return float(features.diff(dim=0).abs().max()), set(graphs.num_edges.tolist())

    coarse, sizes = largest_step(25)
    fine, _ = largest_step(250)
    assert len(sizes) > 1  # edges do come and go on the way
    assert fine < 0.2 * coarse


@pytest.mark.parametrize("place", [0.0, 1.0 - 1e-12, -1e-12, 5.0, -3.0])
def test_where_in_the_lattice_an_atom_is_written_does_not_matter(place: float) -> None:
    crystal = random_crystal()
    coords = crystal.frac_coords - crystal.frac_coords[0]
    shifted = coords.copy()
    shifted[0, 0] += place
    one, two = (
        edge_lengths(c, neighbor_list(c, RECIPE))
        for c in (replace(crystal, frac_coords=coords), replace(crystal, frac_coords=shifted))
    )
    np.testing.assert_allclose(np.sort(one), np.sort(two), atol=1e-6)
