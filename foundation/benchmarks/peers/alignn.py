"""ALIGNN (https://github.com/atomgptlab/alignn, without DGL): 2 + 2 layers of 64, its own 8 Angstrom, 12 neighbours."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from alignn.models.alignn_atomwise_pure import ALIGNNAtomWisePure, ALIGNNAtomWisePureConfig
from alignn.torch_graph_builder import batch_torch_graph_pairs, build_pure_torch_graph
from jarvis.core.atoms import Atoms
from jarvis.core.specie import atomic_numbers_to_symbols
from torch import Tensor

from .contest import Contestant, Crystals, Rows
from .job import main

CUTOFF = 8.0  # Angstrom
NEIGHBORS = 12


class Alignn(Contestant):
    """The bond graph and its line graph, with the features and cutoffs that ALIGNN trains properties with."""

    def __init__(self, crystals: Crystals, job: dict[str, Any]) -> None:
        self.crystals = crystals
        self.device = job["device"]
        self.graphs: dict[int, Any] = {}
        self.model = ALIGNNAtomWisePure(
            ALIGNNAtomWisePureConfig(
                name="alignn_atomwise_pure",
                alignn_layers=2,
                gcn_layers=2,
                hidden_features=64,
                atom_input_features=92,
                calculate_gradient=False,
                gradwise_weight=0,
                energy_mult_natoms=False,
                use_penalty=False,
                use_zbl=False,
            )
        )

    def prepare(self, rows: Rows) -> None:
        """Bond graphs and line graphs by ALIGNN's own builder."""
        for row in rows.tolist():
            if row not in self.graphs:
                self.graphs[row] = build_pure_torch_graph(
                    self._atoms(row), two_body_cutoff=CUTOFF, max_neighbors=NEIGHBORS
                )

    def collate(self, rows: Rows) -> Any:
        """ALIGNN's own batching; lattices are asked for and not used."""
        bonds, angles = batch_torch_graph_pairs([self.graphs[row] for row in rows.tolist()])
        return bonds.to(self.device), angles.to(self.device), torch.zeros(len(rows), 3, 3, device=self.device)

    def forward(self, inputs: Any) -> Tensor:
        """A batch -> [B]."""
        answer = self.model(inputs)
        out: Tensor = answer["out"] if isinstance(answer, dict) else answer
        return out.reshape(-1)

    def num_edges(self, rows: Rows) -> int:
        """Bonds of these crystals."""
        return sum(self.graphs[row][0].num_edges for row in rows.tolist())

    def _atoms(self, row: int) -> Atoms:
        place = self.crystals.atoms(row)
        return Atoms(
            lattice_mat=self.crystals.lattices[row],
            coords=self.crystals.frac_coords[place] - np.floor(self.crystals.frac_coords[place]),
            elements=atomic_numbers_to_symbols(self.crystals.numbers[place].tolist()),
            cartesian=False,
        )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Alignn)
