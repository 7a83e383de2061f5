"""Which process of a distributed run this is, how a process keeps its memory, and how it ends."""

from __future__ import annotations

import atexit
import ctypes
import os
import sys

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


class Ending:
    """Ends a process of a distributed run before Python takes itself apart.

    One of torch's threads may still hold what was sent last. It needs Python's lock to give that back, and where Python
    is going by then the whole process is aborted: Slurm calls a run failed that has done all its work (PyTorch's issue
    190489). Leaving the group does not help, as DistributedDataParallel keeps it.

    Made first of all, so that it runs behind everything else that is registered for the exit.
    """

    def __init__(self) -> None:
        self.code: int | None = None  # until the command is over: an error that nobody has caught ends as ever
        atexit.register(self)

    def __call__(self) -> None:
        """Leave with the code, where there is a group of processes."""
        if self.code is None or "torch" not in sys.modules:
            return
        from foundation.training.agreement import is_grouped

        if is_grouped():
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(self.code)
