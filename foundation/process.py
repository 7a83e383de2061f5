"""Which process of a distributed run this is, and how a process keeps its memory."""

from __future__ import annotations

import ctypes
import os

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # from malloc.h


def is_first_process() -> bool:
    """Whether this is the process that writes and prints, known before any group of processes is set up."""
    for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if variable in os.environ:
            return int(os.environ[variable]) == 0
    return True


def is_distributed() -> bool:
    """Whether several processes train together."""
    return any(int(os.environ.get(variable, "1")) > 1 for variable in ("WORLD_SIZE", "SLURM_NTASKS"))


def keep_freed_memory() -> None:
    """Let glibc keep freed memory for the next allocation instead of giving it back to the system.

    By default every large tensor is mapped afresh and its pages are zeroed one by one, which costs a sixth of a
    training step, and makes a batch of a million edges cost more than twice as much per edge as one of ten thousand.
    Elsewhere than on glibc this does nothing.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
