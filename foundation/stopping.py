"""Signals that ask a run to stop, kept until it is safe to obey them.

Under Slurm SIGUSR1 announces the time limit and SIGTERM a preemption. Nothing is done inside a handler: it only takes
note, and training looks at that note between two batches (``foundation.training.preemption``).
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKS = (signal.SIGUSR1, signal.SIGTERM)
_received: list[int] = []
_holding = False


class Preempted(Exception):
    """The run has saved itself and is to end; the message says what becomes of it.

    Args:
        message: One line for the person who reads the log.
        code: Exit code of the process.
    """

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def held_signals() -> Iterator[None]:
    """Let signals wait that arrive before the run can save itself: by default they would end it during its imports.

    Outside of Slurm SIGTERM ends it until it trains, as it does any program.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    global _holding
    before = {number: signal.getsignal(number) for number in _ASKS}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, _ASKS if "SLURM_JOB_ID" in os.environ else [signal.SIGUSR1])
    _received.clear()
    _holding = True
    try:
        yield
    finally:
        _holding = False
        for number in _ASKS:
            signal.signal(number, signal.SIG_IGN)  # what waits still is dropped: the run is over
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before.items():
            signal.signal(number, handler)


def note(number: signal.Signals, wait: bool = False) -> bool:
    """From now on take note of this signal instead of dying of it; nothing where signals are not held.

    Args:
        number: The signal.
        wait: Whether it is to wait a little longer, as somebody else is about to set a handler for it.

    Returns:
        Whether signals are held.
    """
    if _holding:
        signal.signal(number, _handler)
        signal.pthread_sigmask(signal.SIG_BLOCK if wait else signal.SIG_UNBLOCK, [number])
    return _holding


def let_go() -> None:
    """Signals end the process as they usually do: what runs cannot save itself."""
    if _holding:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _ASKS)


def asked_to_stop() -> int | None:
    """The number of a signal that has arrived, or waits; None where there is none."""
    if _received and _holding:
        return _received[0]
    waiting = signal.sigpending() & set(_ASKS) if _holding else set()
    return int(min(waiting)) if waiting else None


def _handler(number: int, frame: FrameType | None) -> None:
    _received.append(number)
