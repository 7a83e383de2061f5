"""What a job will be, from the words that would be given to sbatch, the script's #SBATCH lines and the environment."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import yaml

from datamodules.errors import InputError
from foundation.paths import config_path

_SHORT = {"N": "nodes", "n": "ntasks", "c": "cpus-per-task", "t": "time", "p": "partition", "A": "account"}
_SHORT |= {"J": "job-name", "a": "array", "o": "output", "e": "error", "G": "gpus", "q": "qos", "C": "constraint"}
_ALONE = {"requeue", "no-requeue", "exclusive", "parsable", "test-only", "hold", "wait"}  # options without a value

_RENAMED = {"timelimit": "time", "array-inx": "array"}  # options whose SBATCH_ variable has another name


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
        return value_of(self.arguments, name)

    @property
    def launcher(self) -> str | None:
        """How the script starts its command, as in slurm/job.sh; None where it is a script of another kind."""
        return self._started()[0]

    @property
    def command(self) -> str | None:
        """The command of this program that the script starts; None where that is not written in it."""
        return self._started()[1]

    def _started(self) -> tuple[str | None, str | None]:
        text = self.script.read_text(encoding="utf-8") if self.script is not None else ""
        match = re.search(r"^\s*(?:(launch_\w+)|(?:srun\s.*)?foundation)\s+(\w+)", text, re.MULTILINE)
        return (match[1], match[2]) if match is not None else (None, None)

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
        return max(self.gpus_asked.values(), default=None)

    @property
    def gpus_asked(self) -> dict[str, int]:
        """GPUs on a node by each of the options that ask for some."""
        nodes = {"gpus-per-task": 1 / self.tasks, "gpus": self.nodes, "gpus-per-node": 1, "gres": 1}
        counts = {name: _gpus(self.options.get(name, "none"), gres=name == "gres") for name in nodes}
        return {name: math.ceil(count / nodes[name]) for name, count in counts.items() if count}


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
    names = {
        name: name.removeprefix(prefix).lower().replace("_", "-") for name in os.environ if name.startswith(prefix)
    }
    site = {_RENAMED.get(name, name): os.environ[variable] for variable, name in names.items()}
    return Submission(written | site | given, script, rest[1:], list(words))


def values_of(words: Sequence[str], name: str, configured: bool = True) -> list[str]:
    """All values of an option of a command, ``--x a b``, ``--x=a`` or ``--x=[a,b]``; none where it is not given.

    Args:
        words: The command line.
        name: The option.
        configured: Whether the files of ``--config`` are read where the command line does not have it.
    """
    found: list[str] = []
    for place, word in enumerate(words):
        if word.startswith(f"--{name}="):
            given = [word.partition("=")[2]]
        elif word == f"--{name}":
            given = list(takewhile(lambda other: not other.startswith("--"), words[place + 1 :]))
        else:
            continue
        for text in given:
            found += [one.strip(" '\"") for one in text.strip("[]").split(",")] if text.startswith("[") else [text]
    if found or not configured or name == "config":
        return found
    for file in reversed(values_of(words, "config")):
        value = _configured(file, name.split("."))
        if value is not None:
            return [str(one) for one in (value if isinstance(value, list) else [value])]
    return []


def value_of(words: Sequence[str], name: str, configured: bool = True) -> str | None:
    """The last of them; None where there is none."""
    found = values_of(words, name, configured)
    return found[-1] if found else None


def _configured(file: str, keys: Sequence[str]) -> Any:
    """What a configuration file says; None where it is silent, or is none, which is told elsewhere."""
    try:
        value: Any = yaml.safe_load(config_path(file).read_text(encoding="utf-8"))
    except (InputError, yaml.YAMLError, UnicodeDecodeError):
        return None
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


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


def _gpus(given: str, gres: bool) -> int:
    """How many GPUs ``gpu:a100:2,nvme:1`` asks for, or, where it is no gres and counts nothing else, ``a100:2``."""
    pattern = r"(?:gres/)?gpu(?:[:=][A-Za-z][\w.-]*)?(?:[:=](\d+))?" if gres else r"(?:[A-Za-z][\w.-]*:)?(\d+)"
    parts = re.sub(r"\(.*?\)", "", given).split(",")  # without the sockets
    return sum(int(match[1] or 1) for match in (re.fullmatch(pattern, part.strip()) for part in parts) if match)


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
