"""What one check of a job has found."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """What one check has found.

    Attributes:
        level: "ok", "warning" or "problem".
        text: In one line, with what to do.
    """

    level: str
    text: str
