"""Memory that was freed, back to the system."""

from __future__ import annotations

import ctypes

import pyarrow as pa


def give_back_memory() -> None:
    """Give back what Arrow and glibc keep of freed memory; elsewhere than on glibc, what Arrow keeps."""
    pa.default_memory_pool().release_unused()
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return
    trim(0)
