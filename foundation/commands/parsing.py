"""Command lines whose mistakes are told in one line."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any, NoReturn

from datamodules.errors import InputError


class OneLineParser(argparse.ArgumentParser):
    """An argparse parser that raises its errors instead of printing its usage and leaving.

    Options are taken as they are spelt: what begins like one is a typo.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        """Raise the message as an InputError."""
        raise InputError(f"{message} (see {self.prog} --help)")


def duration(text: str) -> float:
    """Seconds of ``90``, ``90s``, ``10m`` or ``1.5h``.

    Raises:
        InputError: If it is no positive time.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh]?)", text.strip())
    seconds = float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]] if match else 0.0
    if seconds <= 0:
        raise InputError(f"{text!r} is no time; give one such as 90s, 10m or 1h")
    return seconds


def a_duration(text: str) -> float:
    """The same for argparse, which tells the message of this kind of error only."""
    try:
        return duration(text)
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def one_line(message: str) -> str:
    """Fold a message of several lines into one."""
    return re.sub(r"\s+", " ", message).strip()


def bracket_lists(words: Sequence[str], options: Sequence[str]) -> list[str]:
    """Let an option that takes a list be followed by several words: ``--x a b`` becomes ``--x=["a","b"]``.

    Args:
        words: The command line.
        options: The options that take a list.
    """
    out: list[str] = []
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word not in options:
            out.append(word)
            continue
        values: list[str] = []
        while position < len(words) and not words[position].startswith("--"):
            values.append(words[position])
            position += 1
        if len(values) == 1 and values[0].startswith("["):
            out.append(f"{word}={values[0]}")
        else:
            out.append(f"{word}=[{', '.join(repr(value) for value in values)}]")
    return out
