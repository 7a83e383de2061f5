"""Whether the server of a run that is recorded online still answers, found out beside the training."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable

from foundation.tracking.server import NAME, why_unreachable

_SECONDS = 60.0


class Reach:
    """Asks the server now and then, in a thread, and says once when it no longer answers.

    W&B itself tries again and again without a word, and has everything in its log meanwhile.

    Args:
        later: What uploads the record in that case, for the message.
        every: Seconds between two questions.
        ask: Gives the reason why nobody answers, None where somebody does.
    """

    def __init__(self, later: str, every: float = _SECONDS, ask: Callable[[], str | None] = why_unreachable) -> None:
        self.later = later
        self.every = every
        self.ask = ask
        self.lost = False
        self._asked = time.monotonic()
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Ask if it is time to; waits for nothing."""
        asking = self._thread is not None and self._thread.is_alive()
        if self.lost or asking or time.monotonic() - self._asked < self.every:
            return
        self._asked = time.monotonic()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        problem = self.ask()
        if problem is None or self.lost:
            return
        self.lost = True
        print(
            f"{NAME}: {problem}; training goes on, and if nobody answers to its end {self.later}",
            file=sys.stderr,
            flush=True,
        )
