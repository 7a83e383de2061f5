"""What the processes of a distributed run tell one another in a training step: four numbers, sent beside the gradients.

Of every batch each process says how many labels it has, whether its loss is not finite, and whether it asks to stop or
to save. The sum over the processes is started before backward and read right before the optimizer step. It arrives
while gradients are computed, so that a step has one place at which processes wait for one another: its gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from foundation.training.agreement import Sum


class Wishes(NamedTuple):
    """What is to be done once a step has been taken.

    Attributes:
        stop: To leave, as a signal has asked.
        save: To save, as the last time is long ago.
    """

    stop: bool = False
    save: bool = False


class StepVote:
    """The votes on the batches of one optimizer step.

    Attributes:
        wishes: What this process asks for; sent with the next batch.
        granted: What any process asked for in the step that was counted last.
    """

    def __init__(self) -> None:
        self.wishes = self.granted = Wishes()
        self._batches: list[Sum] = []

    def cast(self, labels: Tensor, finite: Tensor) -> None:
        """Send what this process says of a batch; called on all of them.

        Args:
            labels: [] its number of labels.
            finite: [] whether its loss is finite.
        """
        said = torch.zeros(2 + len(self.wishes), dtype=torch.int64, device=labels.device)
        said[0], said[1] = labels, ~finite
        for place, wish in enumerate(self.wishes, start=2):
            said[place] = wish  # filled in where the numbers are: a copy from the host would be waited for
        self._batches.append(Sum(said))

    def count(self) -> tuple[int, int | None]:
        """Count the votes on all batches since the last count.

        Returns:
            The number of labels over all processes and batches, and the place of the first batch whose loss is not
            finite on some process, None where there is none.
        """
        labels, bad, stop, save = zip(*(batch.result() for batch in self._batches), strict=True)
        self._batches.clear()
        self.granted = Wishes(any(stop), any(save))
        return sum(labels), next((place for place, count in enumerate(bad) if count), None)
