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
    """A sum over all processes that is on its way while they compute; all of them begin it at the same place.

    Args:
        numbers: [K] what this process adds.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._numbers = numbers.detach().clone()
        self._work = torch.distributed.all_reduce(self._numbers, async_op=True) if is_grouped() else None

    def result(self) -> Tensor:
        """[K], waited for."""
        if self._work is not None:
            self._work.wait()
            self._work = None
        return self._numbers


def gathered(value: Any) -> list[Any]:
    """The value of every process, in their order; called on all of them."""
    if not is_grouped():
        return [value]
    values: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(values, value)
    return values
