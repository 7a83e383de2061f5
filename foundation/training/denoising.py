"""Learning forces of a kind from crystals at rest: atoms are moved at random, and the encoder says from where."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn
from torchmetrics import MeanMetric

from datamodules.batching import CrystalBatch
from datamodules.errors import InputError
from foundation.training.keyed_noise import child, key_of, normal, uniform
from foundation.training.module import MultiTaskModule, epoch_mean
from foundation.training.precision import full_precision
from heads.pooling import crystal_mean, crystal_sum


@dataclass(frozen=True)
class Displacements:
    """How atoms of crystals that train are displaced.

    Attributes:
        share: Share of the crystals of a batch whose atoms move, the others stay at rest; 0 moves none, and nothing
            is learned from displacements.
        sigma: Angstrom, standard deviation of the displacement along each axis.
        weight: Weight of a crystal's displacement beside the loss of a label.

    Raises:
        InputError: If one of them makes no sense.
    """

    share: float = 0.0
    sigma: float = 0.05
    weight: float = 0.5

    def __post_init__(self) -> None:
        if not (0 <= self.share <= 1 and self.sigma > 0 and self.weight > 0):
            raise InputError("denoising: share lies between 0 and 1, sigma and weight are positive")


AT_REST = Displacements()


class Denoising(nn.Module):
    """Displaces atoms of relaxed crystals and finds the displacements again (Zaidi et al., ICLR 2023).

    The displacement that leads back is, to first order, a force: labels of energies alone say little about it, and
    stiffness and vibrations hang on it.

    Args:
        irreps: Irreps of the atom features.
        settings: How atoms are displaced.
    """

    def __init__(self, irreps: str, settings: Displacements) -> None:
        super().__init__()
        self.settings = settings
        self.to_vector = o3.Linear(irreps, "1x1o")

    def draw(self, batch: CrystalBatch, *words: int) -> Tensor:
        """[N, 3] displacements in units of ``sigma``, zero where a crystal stays at rest; its centre does not move.

        Args:
            batch: The batch.
            words: What these displacements are for; those of a crystal follow from them and its row alone.
        """
        keys = child(key_of(*words), batch.row)  # [B]
        moves = uniform(child(keys, torch.zeros_like(keys))) < self.settings.share
        first = batch.num_atoms.cumsum(0) - batch.num_atoms  # [B] a crystal's first atom
        atom = torch.arange(len(batch.z), device=keys.device) - first[batch.batch]
        numbers = 1 + 6 * atom[:, None] + torch.arange(6, device=keys.device)  # 0 says whether the crystal moves
        drawn = normal(child(keys[batch.batch, None], numbers).view(-1, 3, 2)).to(batch.edge_vector)
        drawn = drawn * moves.to(drawn)[batch.batch, None]
        centred: Tensor = drawn - crystal_mean(drawn, batch)[batch.batch]
        return centred

    def displaced(self, batch: CrystalBatch, displacement: Tensor) -> CrystalBatch:
        """The same batch with its atoms moved. Every edge stays: noise is far smaller than what makes neighbours."""
        sender, receiver = batch.edge_index
        moved = copy.copy(batch)
        moved.edge_vector = batch.edge_vector + self.settings.sigma * (displacement[sender] - displacement[receiver])
        return moved

    def forward(self, features: Tensor) -> Tensor:
        """[N, irreps.dim] features of displaced atoms -> [N, 3] displacements in units of ``sigma``."""
        vectors: Tensor = self.to_vector(features)
        return vectors

    def loss(self, features: Tensor, displacement: Tensor, batch: CrystalBatch) -> Tensor:
        """Sum over crystals of the mean length of the error, in units of ``sigma``; no term where nothing moved."""
        error = (self(features) - displacement).norm(dim=1)
        moved = displacement.abs().sum(dim=1) > 0
        total: Tensor = (crystal_sum(error * moved, batch) / batch.num_atoms).sum()
        return total


def module_kind(displacements: Displacements, seed: int) -> Callable[..., MultiTaskModule]:
    """What makes the module that trains with these displacements: the plain one where no atom moves."""
    if displacements.share == 0:
        return MultiTaskModule
    return partial(DenoisingModule, displacements=displacements, seed=seed)


class DenoisingModule(MultiTaskModule):
    """Joint training in which every batch is disturbed as well, and labels are those of the crystals at rest.

    Args:
        encoder: The shared encoder.
        heads: One head per property.
        displacements: How atoms are displaced.
        seed: Seed of the displacements.
        more: Of ``MultiTaskModule``.
    """

    def __init__(
        self, encoder: Any, heads: Any, *args: Any, displacements: Displacements, seed: int = 0, **more: Any
    ) -> None:
        super().__init__(encoder, heads, *args, **more)
        self.denoising = Denoising(str(encoder.irreps_out), displacements)
        self.beside.append(self.denoising)
        self.seed = seed
        self.denoising_error = MeanMetric()

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss of the labels and of the displacements."""
        # Of this step: however many processes and accumulated batches share it, and after a resume as without.
        displacement = self.denoising.draw(batch, self.seed, self.global_step)
        with full_precision(self.encoder(self.denoising.displaced(batch, displacement), None)) as features:
            sums, counts, _ = self.losses_of_heads(features, batch)
            loss = self.denoising.loss(features, displacement, batch)
        self.denoising_error.update(loss.detach() / len(batch.num_atoms), len(batch.num_atoms))
        return self.finish_step(
            batch, sums, counts, self.weighting(sums, counts) + self.denoising.settings.weight * loss
        )

    def on_train_epoch_end(self) -> None:
        """Log the error of the displacements, in units of their standard deviation, beside all else."""
        super().on_train_epoch_end()
        self.log("train/denoising", epoch_mean(self.denoising_error), sync_dist=True)
