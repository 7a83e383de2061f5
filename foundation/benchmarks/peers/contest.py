"""What a model must offer to be compared: crystals in, predictions out, and the clock it runs against.

This folder runs in a peer's own interpreter, as the package ``peers``: it imports torch, numpy and the peer alone.
"""

from __future__ import annotations

import abc
import json
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Rows = npt.NDArray[np.int64]
Forward = Callable[[Any], Tensor]


@dataclass(frozen=True)
class Crystals:
    """M crystals as flat arrays, with a target each.

    Attributes:
        first: [M + 1] first atom of each crystal.
        lattices: [M, 3, 3] Angstrom, rows are lattice vectors.
        frac_coords: [sum N, 3].
        numbers: [sum N] atomic numbers.
        target: [M] in physical units.
        part: [M] 0 for crystals to fit on, 1 for those that choose settings, 2 for those that judge.
    """

    first: Rows
    lattices: npt.NDArray[np.float64]
    frac_coords: npt.NDArray[np.float64]
    numbers: Rows
    target: npt.NDArray[np.float64]
    part: Rows

    @classmethod
    def load(cls, path: str | Path) -> Crystals:
        """Read an ``.npz`` of these arrays."""
        with np.load(path) as arrays:
            return cls(**{key: arrays[key] for key in cls.__dataclass_fields__})

    def __len__(self) -> int:
        return len(self.target)

    def atoms(self, row: int) -> slice:
        """Where the atoms of a crystal stand."""
        return slice(int(self.first[row]), int(self.first[row + 1]))

    def positions(self, row: int) -> npt.NDArray[np.float64]:
        """[N, 3] Cartesian, Angstrom, inside the cell."""
        frac = self.frac_coords[self.atoms(row)]
        positions: npt.NDArray[np.float64] = (frac - np.floor(frac)) @ self.lattices[row]
        return positions


class Contestant(abc.ABC):
    """A model with fresh weights and its own way from crystals to inputs.

    Attributes:
        model: What trains.
    """

    model: nn.Module

    @abc.abstractmethod
    def prepare(self, rows: Rows) -> None:
        """Build the graphs of these crystals and keep them."""

    @abc.abstractmethod
    def collate(self, rows: Rows) -> Any:
        """One batch of prepared crystals, on the model's device."""

    @abc.abstractmethod
    def forward(self, inputs: Any) -> Tensor:
        """A batch -> [B], in a space where targets have mean 0 and spread 1."""

    @abc.abstractmethod
    def num_edges(self, rows: Rows) -> int:
        """Edges of the prepared graphs of these crystals."""

    def optimizer(self, learning_rate: float, weight_decay: float) -> Optimizer:
        """AdamW that decays weight matrices and nothing else."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        groups = [
            {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": weight_decay},
            {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=learning_rate, foreach=True)

    def compiled(self) -> Forward:
        """The forward pass, compiled for batches of every size."""
        compiled: Forward = torch.compile(self.forward, dynamic=True)
        return compiled


class Clock:
    """Seconds that a job has used since this was made.

    On the CPU, processor time of this process and of the compilers it started, so that other work on the machine
    shows little; on a GPU wall time, once the GPU has done what it was given.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.begin = 0.0
        self.begin = self.seconds()

    def seconds(self) -> float:
        """Seconds used so far."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return time.perf_counter() - self.begin
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        return time.process_time() + children.ru_utime + children.ru_stime - self.begin


def peak_memory(device: str) -> float:
    """Largest memory so far in MiB: resident on the CPU, allocated on a GPU."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def say(result: dict[str, Any]) -> None:
    """One line of JSON."""
    print(json.dumps(result), flush=True)
