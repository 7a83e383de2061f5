"""Recording may fail; what is recorded goes on."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch.loggers import Logger

T = TypeVar("T")

_PROBE_SECONDS = 10.0
_PROBE_BYTES = b"\0" * 65536


class Guard:
    """Calls what may fail until it does, says so once, and calls nothing more.

    Args:
        what: Name of what is called, for the message.
        folder: Where it keeps its files, tried from time to time: W&B's own process writes there and does not tell
            this one that the disk is full. None tries nothing.
    """

    def __init__(self, what: str, folder: Path | None = None) -> None:
        self.what = what
        self.folder = folder
        self.broken = False
        self._probed = 0.0

    def attempt(self, call: Callable[..., T], *arguments: Any, **named: Any) -> T | None:
        """What the call returns; None where it fails or an earlier one did."""
        if self.broken:
            return None
        try:
            if self.folder is not None and time.monotonic() - self._probed > _PROBE_SECONDS:
                self.probe()
            return call(*arguments, **named)
        except Exception as error:  # whatever it is, weeks of training are worth more than their record
            self.give_up(error)
            return None

    def probe(self) -> None:
        """Write a little into the folder and take it away again.

        Raises:
            OSError: If that cannot be done.
        """
        assert self.folder is not None
        self._probed = time.monotonic()
        with tempfile.TemporaryFile(dir=self.folder) as file:
            file.write(_PROBE_BYTES)
            file.flush()

    def give_up(self, error: Exception) -> None:
        """Say what went wrong, and call nothing more."""
        self.broken = True
        print(
            f"warning: {self.what} fails ({first_line(error)}); training goes on without it",
            file=sys.stderr,
            flush=True,
        )


def first_line(error: Exception) -> str:
    """What an error says, in one line; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


class GuardedLogger(Logger):
    """A logger whose failure does not stop the training.

    Args:
        logger: The logger.
        guard: Keeps its failures.
    """

    def __init__(self, logger: Logger, guard: Guard) -> None:
        super().__init__()
        self.logger = logger
        self.guard = guard

    @property
    def name(self) -> str | None:
        """Of the logger."""
        return self.logger.name

    @property
    def version(self) -> int | str | None:
        """Of the logger."""
        return self.logger.version

    @property
    def save_dir(self) -> str | None:
        """Of the logger."""
        return self.logger.save_dir

    def log_hyperparams(self, params: Any, *arguments: Any, **named: Any) -> None:
        """Hand them on."""
        self.guard.attempt(self.logger.log_hyperparams, params, *arguments, **named)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Hand them on."""
        self.guard.attempt(self.logger.log_metrics, dict(metrics), step)

    def save(self) -> None:
        """Hand it on."""
        self.guard.attempt(self.logger.save)

    def finalize(self, status: str) -> None:
        """Hand it on."""
        self.guard.attempt(self.logger.finalize, status)
