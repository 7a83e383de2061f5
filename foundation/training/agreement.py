"""What the processes of a distributed run decide together, so that none waits for another that has left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_grouped() -> bool:
    """Whether there are several processes that can talk to one another."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def num_processes() -> int:
    """How many there are."""
    return torch.distributed.get_world_size() if is_grouped() else 1


def any_process(facts: Sequence[bool], device: torch.device) -> list[bool]:
    """Each fact, as true as it is on any process; called on all of them."""
    if not is_grouped():
        return list(facts)
    votes = torch.tensor(facts, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(votes, op=torch.distributed.ReduceOp.MAX)
    return [bool(vote) for vote in votes.tolist()]


class Sum:
    """A sum of whole numbers over all processes that is on its way while they compute.

    All of them begin it at the same place among what they send one another.

    Args:
        numbers: [K] what this process adds; overwritten.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = self._told = numbers  # kept: its memory is in use until the sums are there
        self._arrived: torch.cuda.Event | None = None
        if not numbers.is_cuda:
            self._work = _started(numbers)
            return
        # Beside the work that is queued from here on, which a reader would wait for otherwise.
        beside = torch.cuda.Stream(numbers.device)
        beside.wait_stream(torch.cuda.current_stream(numbers.device))
        with torch.cuda.stream(beside):
            self._work = _started(numbers)
            if self._work is not None:
                self._work.wait()  # the stream does, not the host
            self._told = numbers.to("cpu", non_blocking=True)
            self._arrived = beside.record_event()

    def result(self) -> list[int]:
        """[K], waited for."""
        if self._arrived is not None:
            self._arrived.synchronize()
        elif self._work is not None:
            self._work.wait()
        return [int(number) for number in self._told.tolist()]


def gathered(value: Any) -> list[Any]:
    """The value of every process, in their order; called on all of them."""
    if not is_grouped():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def _started(numbers: Tensor) -> torch.distributed.Work | None:
    return torch.distributed.all_reduce(numbers, async_op=True) if is_grouped() else None
