"""What a job will be, from the words that would be given to sbatch, the script's #SBATCH lines and the environment."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datamodules.errors import InputError

_SHORT = {"N": "nodes", "n": "ntasks", "c": "cpus-per-task", "t": "time", "p": "partition", "A": "account"}
_SHORT |= {"J": "job-name", "a": "array", "o": "output", "e": "error", "G": "gpus", "q": "qos", "C": "constraint"}
_ALONE = {"requeue", "no-requeue", "exclusive", "parsable", "test-only", "hold", "wait"}  # options without a value


@dataclass(frozen=True)
class Submission:
    """A job that is not queued yet.

    Attributes:
        options: Of sbatch, by long name.
        script: The script; None where options alone were given.
        arguments: Of the script.
        words: All of it, as for sbatch.
    """

    options: dict[str, str]
    script: Path | None
    arguments: list[str]
    words: list[str]

    def argument(self, name: str) -> str | None:
        """The value of an option of the script's command; None where it is not given."""
        for place, word in enumerate(self.arguments):
            if word.startswith(f"--{name}="):
                return word.partition("=")[2]
            if word == f"--{name}" and place + 1 < len(self.arguments):
                return self.arguments[place + 1]
        return None

    @property
    def nodes(self) -> int:
        """How many."""
        return int(re.split(r"[^0-9]", self.options.get("nodes", "1"))[0] or 1)

    @property
    def tasks(self) -> int:
        """Processes on a node."""
        return int(self.options.get("ntasks-per-node", "1"))

    @property
    def gpus(self) -> int | None:
        """GPUs on a node; None where none is asked for."""
        for name in ("gpus-per-node", "gres"):
            match = re.fullmatch(r"(?:gpu:?)?(?:[A-Za-z][\w-]*:)?([0-9]*)", self.options.get(name, "none"))
            if match is not None and self.options[name] != "none":
                return int(match[1] or 1)
        return None


def read_submission(words: Sequence[str]) -> Submission:
    """Take apart what would be given to sbatch: its options, the script, and the script's arguments.

    Raises:
        InputError: If there is no such script.
    """
    given, rest = _options(words)
    script = Path(rest[0]) if rest else None
    if script is not None and not script.is_file():
        raise InputError(f"{script}: no such script")
    lines = script.read_text(encoding="utf-8").splitlines() if script else []
    directives = [line.removeprefix("#SBATCH").split("#")[0].split() for line in lines if line.startswith("#SBATCH")]
    written, _ = _options([word for line in directives for word in line])
    prefix = "SBATCH_"
    site = {
        name.removeprefix(prefix).lower().replace("_", "-"): value
        for name, value in os.environ.items()
        if name.startswith(prefix)
    }
    return Submission(written | site | given, script, rest[1:], list(words))


def seconds_of(limit: str) -> int:
    """Seconds of Slurm's ``minutes``, ``minutes:seconds``, ``hours:minutes:seconds`` or ``days-hours[:...]``.

    Raises:
        InputError: If it is no time.
    """
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", limit)
    if match is None:
        raise InputError(f"--time={limit}: no time")
    days, *parts = match.groups()
    first, second, third = (int(part) if part is not None else None for part in parts)
    assert first is not None
    if days is not None:
        return int(days) * 86400 + first * 3600 + (second or 0) * 60 + (third or 0)
    if third is not None:
        return first * 3600 + (second or 0) * 60 + third
    return first * 60 + (second or 0)


def _options(words: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Options up to the first word that is none, and the rest."""
    found: dict[str, str] = {}
    rest = list(words)
    while rest and rest[0].startswith("-"):
        word = rest.pop(0)
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
        else:
            name, value = _SHORT.get(word[1], word[1]), word[2:].removeprefix("=")
            equals = value
        if not equals and name not in _ALONE:
            if not rest:
                raise InputError(f"{word}: needs a value")
            value = rest.pop(0)
        found[name] = value
    return found, rest
