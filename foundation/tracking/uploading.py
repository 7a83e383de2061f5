"""Whether a server takes what is recorded, as the log of W&B's own process tells.

That process tries again and again as long as the run lasts, and gives up for good where the server refuses. It has no
call that tells of either: ``wandb.Run.status`` is always zero.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_LOOK_SECONDS = 10.0
_PATIENCE_SECONDS = 30.0  # less is a hiccup


class Uploading:
    """Reads the log of W&B's process from time to time; where that reads otherwise one day, no problem is found.

    Args:
        log: The log, a JSON object a line.
    """

    def __init__(self, log: Path) -> None:
        self.log = log
        self._read = 0  # bytes
        self._looked = time.monotonic()
        self._waiting_since: datetime | None = None
        self._reason = ""
        self._refusal: str | None = None

    def problem(self) -> str | None:
        """What is wrong, for a message; None where nothing is, or where one has looked a moment ago."""
        if time.monotonic() - self._looked < _LOOK_SECONDS:
            return None
        refusal = self.given_up()
        if refusal is not None or self._waiting_since is None:
            return refusal
        seconds = (datetime.now(UTC) - self._waiting_since).total_seconds()
        if seconds < _PATIENCE_SECONDS:
            return None
        return f"has taken nothing for {seconds:.0f} s ({self._reason or 'no answer'})"

    def given_up(self) -> str | None:
        """Why nothing will be uploaded any more; None where W&B goes on trying or is done."""
        self._looked = time.monotonic()
        for entry in self._new_entries():
            told = str(entry.get("msg", ""))
            if told.startswith("filestream: sending request"):
                self._waiting_since = _time(entry)
            elif told.startswith("filestream: request sent"):
                self._waiting_since, self._reason = None, ""
            elif told.startswith("filestream: fatal error"):
                self._refusal = f"refuses what is recorded ({_short(told)})"
            elif "retrying" in told:
                self._reason = _short(str(entry.get("error") or f"HTTP {entry.get('status')}"))
        return self._refusal

    def _new_entries(self) -> Iterator[dict[str, Any]]:
        try:
            with self.log.open("rb") as file:
                file.seek(self._read)
                lines = file.read().rpartition(b"\n")[0]  # the last one may be half written
        except OSError:
            return
        self._read += len(lines) + (1 if lines else 0)
        for line in lines.splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict):
                yield entry


def _time(entry: dict[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(entry.get("time"))[:19]).replace(tzinfo=UTC)
    except ValueError:
        return None


def _short(told: str) -> str:
    """``connection refused`` of ``Post "http://...": dial tcp 127.0.0.1:8080: connect: connection refused``."""
    return told.partition(" url=")[0].splitlines()[0].rpartition(": ")[2]
