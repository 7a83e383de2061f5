"""Our encoder as a contestant; ``python -m foundation.benchmarks.ours`` does one job of a comparison."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from datamodules.batching import CrystalBatch, GraphArrays, build_graphs
from datamodules.crystals import Crystal
from datamodules.graph import fixed_cutoff_edges
from datamodules.properties import Property
from foundation.benchmarks.peers.contest import Contestant, Crystals, Forward, Rows
from foundation.benchmarks.peers.job import main
from foundation.checkpoint import build_module
from foundation.process import keep_freed_memory
from foundation.training.optimization import Optimization
from foundation.training.spec import HeadSpec, ModelSpec


class Ours(Contestant):
    """The encoder of a configuration with a scalar head, inside the module that every command trains.

    The job says ``encoder``, its arguments, ``optimizer``, and in ``cutoff`` whether its own neighbour recipe is used
    (null) or all neighbours within so many Angstrom.
    """

    def __init__(self, crystals: Crystals, job: dict[str, Any]) -> None:
        target = Property("target")
        spec = ModelSpec(job["encoder"], {target.name: HeadSpec("heads.ScalarHead", {}, target)})
        self.module = build_module(spec, Optimization(optimizer=job["optimizer"]))
        self.model = self.module
        self.head = self.module.heads[target.name]
        self.crystals = crystals
        self.device = job["device"]
        self.cutoff: float | None = job["cutoff"]
        self.graphs: GraphArrays | None = None
        self.place = np.zeros(len(crystals), dtype=np.int64)  # of a crystal in the graphs that are kept

    def prepare(self, rows: Rows) -> None:
        """Flat arrays of the graphs of these crystals, in place of earlier ones."""
        chosen = [self._crystal(row) for row in rows.tolist()]
        if self.cutoff is None:
            self.graphs = build_graphs(chosen, self.module.encoder.recipe)
        else:
            self.graphs = graphs_within(chosen, self.cutoff)
        self.place[rows] = np.arange(len(rows))

    def collate(self, rows: Rows) -> CrystalBatch:
        """One gather from the flat arrays."""
        assert self.graphs is not None
        batch: CrystalBatch = self.graphs.gather(self.place[rows]).to(self.device)
        return batch

    def forward(self, inputs: CrystalBatch) -> Tensor:
        """A batch -> [B]."""
        out: Tensor = self.head(self.module.encoder.forward(inputs), inputs)
        return out

    def compiled(self) -> Forward:
        """The encoder is what is compiled, as in every training run."""
        self.module.encoder.compile(dynamic=True)
        return lambda inputs: self.head(self.module.encoder(inputs), inputs)

    def optimizer(self, learning_rate: float, weight_decay: float) -> Optimizer:
        """The optimizer that the job names."""
        settings = self.module.optimization
        self.module.optimization = replace(settings, learning_rate=learning_rate, weight_decay=weight_decay)
        return self.module.make_optimizer()

    def num_edges(self, rows: Rows) -> int:
        """Edges of these crystals."""
        assert self.graphs is not None
        return int(self.graphs.num_edges[self.place[rows]].sum())

    def _crystal(self, row: int) -> Crystal:
        atoms = self.crystals.atoms(row)
        return Crystal(self.crystals.lattices[row], self.crystals.frac_coords[atoms], self.crystals.numbers[atoms])


def graphs_within(crystals: list[Crystal], cutoff: float) -> GraphArrays:
    """Graphs with all neighbours within a fixed cutoff, in Angstrom, for comparison with models that use one."""
    receivers, senders, shifts = [], [], []
    for crystal in crystals:
        receiver, sender, shift, _ = fixed_cutoff_edges(crystal, cutoff)
        order = np.argsort(receiver, kind="stable")
        receivers.append(receiver[order])
        senders.append(sender[order])
        shifts.append(shift[order])
    return GraphArrays(
        atom_ptr=np.cumsum([0, *(len(crystal) for crystal in crystals)], dtype=np.int64),
        edge_ptr=np.cumsum([0, *map(len, senders)], dtype=np.int64),
        numbers=np.concatenate([crystal.numbers for crystal in crystals]),
        frac_coords=np.concatenate([crystal.frac_coords for crystal in crystals]),
        lattices=np.stack([crystal.lattice for crystal in crystals]),
        sender=np.concatenate(senders),
        receiver=np.concatenate(receivers),
        shift=np.concatenate(shifts),
        cutoff=np.full(sum(map(len, crystals)), cutoff),
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_default_dtype(torch.float32)
    keep_freed_memory()
    main(Ours)
