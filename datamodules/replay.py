"""Batches of an old data set among those of a new one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batching import CrystalBatch

if TYPE_CHECKING:
    from datamodules.datamodule import CrystalDataModule


class Rehearsal:
    """What is rehearsed, and how often.

    Args:
        data: The old data, its properties chosen.
        share: Share of all batches that are old.
        first_column: How many properties the new data has; the labels of the old ones stand behind theirs.
    """

    def __init__(self, data: CrystalDataModule, share: float, first_column: int) -> None:
        self.data = data
        self.share = share
        self.first_column = first_column

    def among(self, new: DataLoader[CrystalBatch]) -> RehearsingLoader:
        """The new batches with old ones among them."""
        old = self.data.train_dataloader()
        assert isinstance(old, DataLoader)
        count = round(len(new) * self.share / (1 - self.share))
        return RehearsingLoader(new, old, min(max(1, count), len(old)), self.first_column)


class RehearsingLoader:
    """An epoch of new batches, with old ones at even distances.

    Every process of a distributed run has old batches at the same steps.

    Args:
        new: All of its batches make an epoch.
        old: Its first batches of every epoch are taken; it is shuffled anew each time.
        count: How many.
        first_column: Columns of labels of the new batches.
    """

    def __init__(
        self, new: DataLoader[CrystalBatch], old: DataLoader[CrystalBatch], count: int, first_column: int
    ) -> None:
        self.new = new
        self.old = old
        self.count = count
        self.first_column = first_column
        self._epoch = 0
        self._begin = (0, 0)  # epoch, and how many of its batches are passed over
        self.sampler = self  # where Lightning looks for set_epoch

    def __len__(self) -> int:
        return len(self.new) + self.count

    def __iter__(self) -> Iterator[CrystalBatch]:
        new, old = iter(self.new), iter(self.old)
        epoch, passed = self._begin
        for is_new in self._turns()[passed if epoch == self._epoch else 0 :]:
            if is_new:
                yield next(new)
            else:
                rehearsed = next(old)
                rehearsed.labels = self._behind(rehearsed.labels)
                yield rehearsed

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self._epoch = epoch
        for sampler in self._samplers():
            sampler.set_epoch(epoch)

    def go_to(self, epoch: int, batches: int) -> None:
        """Begin this epoch behind its first batches: a run that goes on has trained on them already."""
        self._begin = (epoch, batches)
        passed = self._turns()[:batches]
        for sampler, count in zip(self._samplers(), (sum(passed), len(passed) - sum(passed)), strict=True):
            sampler.go_to(epoch, count)

    def _samplers(self) -> list[Any]:
        return [self.new.sampler, self.old.sampler]

    def _turns(self) -> list[bool]:
        """Whose batch comes when: True for a new one."""
        turns: list[bool] = []
        for number in range(1, len(self.new) + 1):
            turns.append(True)
            taken = len(turns) - number
            turns += [False] * (round(number * self.count / len(self.new)) - taken)
        return turns

    def _behind(self, labels: Tensor) -> Tensor:
        """[B, P_old] -> [B, P_new + P_old], the new ones missing."""
        return torch.nn.functional.pad(labels, (self.first_column, 0), value=torch.nan)
