"""Which process of a distributed run this is."""

from __future__ import annotations

import os


def is_first_process() -> bool:
    """Whether this is the process that writes and prints, known before any group of processes is set up."""
    for variable in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if variable in os.environ:
            return int(os.environ[variable]) == 0
    return True
