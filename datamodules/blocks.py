"""Long arrays, gone through a block at a time, so that what is made of them on the way never grows with the store."""

from __future__ import annotations

from collections.abc import Iterator

BLOCK = 1 << 16  # rows: half a MB of numbers


def blocks(size: int) -> Iterator[slice]:
    """The slices that make up this many rows, one after another."""
    for start in range(0, size, BLOCK):
        yield slice(start, min(start + BLOCK, size))
