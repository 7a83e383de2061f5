"""Which parts of a training step may be rounded to fewer bits.

Matrix products of the encoder may: under ``--trainer.precision bf16-mixed`` in bfloat16, under
``--matmul_precision high`` in TF32. Heads, losses and sums keep at least single precision.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from datamodules.errors import InputError

MatmulPrecision = Literal["highest", "high"]

_TRAINER_PRECISIONS = ("32-true", "32", "64-true", "64", "bf16-mixed", "bf16")


def check_precision(asked: Any) -> None:
    """Refuse a trainer's precision in which weights, geometry or sums would have fewer than 32 bits.

    Args:
        asked: The ``precision`` argument of ``lightning.Trainer``; None is its default.

    Raises:
        InputError: If it is one of those.
    """
    if asked is not None and str(asked) not in _TRAINER_PRECISIONS:
        raise InputError(f"--trainer.precision {asked}: choose 32-true, bf16-mixed or 64-true")


@contextmanager
def full_precision(features: Tensor) -> Iterator[Tensor]:
    """A region without autocast.

    Args:
        features: What an autocast region made.

    Yields:
        The features, in single precision at least.
    """
    with torch.autocast(features.device.type, enabled=False):
        yield features.to(torch.promote_types(features.dtype, torch.float32))
