"""NequIP's S preset (https://github.com/mir-group/nequip): energies only, a 5 Angstrom cutoff, mean over atoms."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from nequip.data import AtomicDataDict, compute_neighborlist_, from_dict
from nequip.model import PresetNequIPGNNModel
from nequip.utils.global_state import set_global_state
from torch import Tensor

from .contest import Contestant, Crystals, Rows
from .job import main

CUTOFF = 5.0  # Angstrom


class Nequip(Contestant):
    """The total energy that NequIP predicts, divided by the number of atoms, is the target."""

    def __init__(self, crystals: Crystals, job: dict[str, Any]) -> None:
        set_global_state()
        torch.set_default_dtype(torch.float32)  # it leaves float64
        self.crystals = crystals
        self.device = job["device"]
        self.elements = np.unique(crystals.numbers)
        self.graphs: dict[int, dict[str, Tensor]] = {}
        sample = np.random.default_rng(0).permutation(np.flatnonzero(crystals.part == 0))[:64]
        self.prepare(sample)  # the mean number of neighbours is part of the architecture
        edges = sum(self.graphs[row][AtomicDataDict.EDGE_INDEX_KEY].shape[1] for row in sample.tolist())
        atoms = sum(len(self.graphs[row][AtomicDataDict.POSITIONS_KEY]) for row in sample.tolist())
        self.graphs.clear()
        self.model = PresetNequIPGNNModel(
            preset="S",
            seed=job["seed"],
            model_dtype="float32",
            type_names=[f"Z{number}" for number in self.elements],
            r_max=CUTOFF,
            avg_num_neighbors=edges / atoms,
            do_derivatives=False,
            compile_mode="eager",
        )

    def prepare(self, rows: Rows) -> None:
        """Neighbours by NequIP's own list."""
        for row in rows.tolist():
            if row not in self.graphs:
                self.graphs[row] = compute_neighborlist_(self._frame(row), r_max=CUTOFF)

    def collate(self, rows: Rows) -> dict[str, Tensor]:
        """NequIP's own batching."""
        batch = AtomicDataDict.batched_from_list([self.graphs[row] for row in rows.tolist()])
        return {key: value.to(self.device) for key, value in batch.items()}

    def forward(self, inputs: dict[str, Tensor]) -> Tensor:
        """A batch -> [B]."""
        energy: Tensor = self.model(dict(inputs))[AtomicDataDict.TOTAL_ENERGY_KEY]
        return energy.reshape(-1) / inputs[AtomicDataDict.NUM_NODES_KEY].reshape(-1)

    def num_edges(self, rows: Rows) -> int:
        """Edges of these crystals."""
        return sum(self.graphs[row][AtomicDataDict.EDGE_INDEX_KEY].shape[1] for row in rows.tolist())

    def _frame(self, row: int) -> dict[str, Tensor]:
        types = np.searchsorted(self.elements, self.crystals.numbers[self.crystals.atoms(row)])
        return from_dict(  # type: ignore[no-any-return]
            {
                AtomicDataDict.POSITIONS_KEY: torch.tensor(self.crystals.positions(row), dtype=torch.float32),
                AtomicDataDict.CELL_KEY: torch.tensor(self.crystals.lattices[row], dtype=torch.float32),
                AtomicDataDict.PBC_KEY: torch.ones(3, dtype=torch.bool),
                AtomicDataDict.ATOM_TYPE_KEY: torch.from_numpy(types.astype(np.int64)),
            }
        )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main(Nequip)
