"""What heads of labels with more than one number have in common."""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from datamodules.properties import WEIGHT
from heads.base import Head
from heads.pooling import crystal_sum


class ShapedHead(Head):
    """A tensor or a spectrum of a crystal, or anything of each atom.

    Every labelled crystal counts once: the loss of a label of atoms is the mean over the atoms that have one.

    Subclasses implement ``shape`` and, besides what every head does, ``baseline``.
    """

    @property
    @abc.abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of the label of one crystal, or of one atom."""

    @property
    def per_atom(self) -> bool:
        """Whether each atom has a label."""
        return self.property.level == "atom"

    @property
    def is_single(self) -> bool:
        return False

    def target(self, column: Tensor, batch: Any) -> Tensor:
        """[B, ...], or [N, ...] of atoms; NaN throughout for data that know nothing of this property."""
        given = batch.shaped if "shaped" in batch else {}
        if self.property.name in given:
            found: Tensor = given[self.property.name]
            return found
        size = len(batch.z) if self.per_atom else len(batch.num_atoms)
        return torch.full((size, *self.shape), torch.nan, dtype=column.dtype, device=column.device)

    def masked_loss(self, scaled: Tensor, target: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """[B] losses, weighed by what the import thought of each label, and [B] where there is one to learn from."""
        there = has_label(target)  # [B] or [N]
        goal = torch.where(expand(there, target), target, torch.zeros_like(target))
        losses, known = self.loss_of_crystals(scaled, goal, there, batch)
        weights = batch.shaped.get(self.property.name + WEIGHT) if "shaped" in batch else None
        if weights is not None:
            losses = losses * torch.where(known, weights, torch.ones_like(weights))
        return torch.where(known, losses, torch.zeros_like(losses)), known

    def loss_of_crystals(self, scaled: Tensor, goal: Tensor, there: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """[B] losses, and [B] where there is a label to learn from.

        Args:
            scaled: What ``forward`` gave.
            goal: Labels, and stand-ins for those that are missing.
            there: [B], or [N] of atoms: which of them are labels.
            batch: The batch.
        """
        losses = self.loss(scaled, goal, batch)
        if not self.per_atom:
            return losses, there
        return masked_mean(losses, there, batch), crystal_sum(there, batch) > 0

    @abc.abstractmethod
    def baseline(self, target: Tensor, batch: Any, asked: Any) -> Tensor:
        """What one would say without a model.

        Args:
            target: Training labels, in physical units, of the crystals of ``batch``.
            batch: These crystals.
            asked: The crystals to be told of.

        Returns:
            In physical units: [B, ...], or [N, ...] of atoms.
        """


def has_label(target: Tensor) -> Tensor:
    """[K, ...] -> [K] whether nothing is NaN."""
    return ~torch.isnan(target).flatten(1).any(dim=1) if target.dim() > 1 else ~torch.isnan(target)


def expand(rows: Tensor, like: Tensor) -> Tensor:
    """[K] -> [K, 1, ...] with as many dimensions as another tensor."""
    return rows.view(-1, *[1] * (like.dim() - 1))


def masked_mean(losses: Tensor, there: Tensor, batch: Any) -> Tensor:
    """[N, ...] losses of atoms, which of them count -> [B, ...] mean over those of each crystal; 0 where none are."""
    sums = crystal_sum(torch.where(there, losses, torch.zeros_like(losses)), batch)
    return sums / crystal_sum(there.to(losses.dtype), batch).clamp(min=1)


def element_means(target: Tensor, batch: Any, asked: Any) -> Tensor:
    """The mean label of each asked atom's element, and the mean over all labels for an element without any.

    Args:
        target: [N, ...] labels of atoms, NaN where there is none.
        batch: These atoms.
        asked: The atoms to be told of.
    """
    there = has_label(target)
    values, numbers = target[there], batch.z[there]
    size = int(max(batch.z.max(), asked.z.max())) + 1
    sums = torch.zeros(size, *target.shape[1:], dtype=target.dtype).index_add(0, numbers, values)
    counts = torch.bincount(numbers, minlength=size)
    means = sums / expand(counts.clamp(min=1).to(target.dtype), sums)
    means[counts == 0] = values.mean(dim=0)
    return means[asked.z]
