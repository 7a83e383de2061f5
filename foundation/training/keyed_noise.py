"""Random numbers that follow from what they are for alone: not from the process that draws them, nor from the batch.

A generator gives its numbers in turn, so a crystal's depend on who is in the batch before it. Here a number is a hash
of its key: SplitMix64 (Steele et al., OOPSLA 2014) started at the key, whose n-th number needs none of those before.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BITS = 64
_GAMMA = 0x9E3779B97F4A7C15


def key_of(*words: int) -> int:
    """One key from several numbers, as a signed integer of 64 bits."""
    key = torch.zeros((), dtype=torch.int64)
    for word in words:
        key = child(key, torch.tensor(_signed(word)))
    return int(key)


def child(key: int | Tensor, index: Tensor) -> Tensor:
    """The key of what has this index below a key; both are int64 and broadcast."""
    mixed = key + (index + 1) * _signed(_GAMMA)  # integers of torch wrap around
    mixed = (mixed ^ _shifted(mixed, 30)) * _signed(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ _shifted(mixed, 27)) * _signed(0x94D049BB133111EB)
    return mixed ^ _shifted(mixed, 31)


def uniform(keys: Tensor) -> Tensor:
    """A number between 0 and 1, neither included, of each key; in double precision."""
    return (_shifted(keys, 11).double() + 0.5) * 2.0**-53


def normal(keys: Tensor) -> Tensor:
    """[..., 2] keys -> [...] numbers of mean 0 and variance 1, in double precision."""
    one, two = uniform(keys).unbind(dim=-1)
    return torch.sqrt(-2 * torch.log(one)) * torch.cos(2 * math.pi * two)  # Box and Muller


def _shifted(value: Tensor, by: int) -> Tensor:
    """To the right, with zeros from the left: torch would repeat the sign."""
    return (value >> by) & ((1 << (_BITS - by)) - 1)


def _signed(value: int) -> int:
    value %= 1 << _BITS
    return value - (1 << _BITS) if value >> (_BITS - 1) else value
