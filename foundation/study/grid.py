"""The cells of a study: which ones are asked for, in which order."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datamodules.errors import InputError
from foundation.study.config import AXES, Axes
from foundation.study.folder import TargetFolder

NONE = "none"  # the source of what starts from fresh weights


@dataclass(frozen=True)
class Cell:
    """One point of the grid."""

    target: str
    size: int
    trial: str
    seed: int
    source: str
    strategy: str

    @property
    def name(self) -> str:
        """Stem of its files."""
        return f"{self.target}-{self.size}-{self.trial}-seed{self.seed}-{self.source}-{self.strategy}"


def parse_cells(text: str) -> dict[str, list[str]]:
    """Values by axis from ``target=ph,dc;size=100,800``.

    Raises:
        InputError: If an axis is unknown, named twice or without values.
    """
    chosen: dict[str, list[str]] = {}
    for part in filter(None, map(str.strip, text.split(";"))):
        axis, _, values = (word.strip() for word in part.partition("="))
        if axis not in AXES:
            raise InputError(f"--cells: no axis {axis!r}; axes are {', '.join(AXES)}")
        if axis in chosen:
            raise InputError(f"--cells: axis {axis} is named twice")
        chosen[axis] = list(dict.fromkeys(filter(None, map(str.strip, values.split(",")))))
        if not chosen[axis]:
            raise InputError(f"--cells: give {axis} a value, such as {axis}=NAME or {axis}=NAME,NAME")
        if axis in ("size", "seed"):
            for value in chosen[axis]:
                if not value.isdigit():
                    raise InputError(f"--cells: {axis} {value!r} is not a number")
    if not chosen:
        raise InputError("--cells: names no axis; write axis=value,value;axis=value")
    return chosen


def make_grid(
    axes: Axes, chosen: Mapping[str, list[str]] | None, folder: TargetFolder, needs_source: Callable[[str], bool | None]
) -> list[Cell]:
    """The cells that are asked for, without repeats.

    Args:
        axes: Values of the configuration.
        chosen: Values by axis from the command line; an axis that is not named takes its first value. None takes
            the whole grid.
        folder: The folder of targets. Configured targets, trials and sizes that it lacks are passed over; where it
            has none of them, its own stand in.
        needs_source: Whether a strategy starts from a source (True), from none (False), or from either (None).

    Raises:
        InputError: If a value from the command line is not there.
    """
    cells: list[Cell] = []
    sources, strategies = (_of_axis(axes, chosen, axis) for axis in ("source", "strategy"))
    seeds = [int(seed) for seed in _of_axis(axes, chosen, "seed")]
    for target in _targets(axes, chosen, folder):
        for trial, size in _trials(axes, chosen, folder, target):
            for seed, strategy, source in itertools.product(seeds, strategies, sources):
                pair = _meaning(source, strategy, needs_source(strategy))
                cells.append(Cell(target, size, trial, seed, *pair))
    # By target, then size: what is nearest to each other in a figure is done at about the same time.
    return list(dict.fromkeys(cells))


def _meaning(source: str, strategy: str, needs_source: bool | None) -> tuple[str, str]:
    """A strategy that uses no source has the source none, and one that lacks its source trains from scratch."""
    if needs_source is False:
        return NONE, strategy
    return (NONE, "from_scratch") if needs_source and source == NONE else (source, strategy)


def _of_axis(axes: Axes, chosen: Mapping[str, list[str]] | None, axis: str) -> list[str]:
    configured = [str(value) for value in getattr(axes, axis)]
    if chosen is None:
        return configured
    return chosen.get(axis, configured[:1])


def _targets(axes: Axes, chosen: Mapping[str, list[str]] | None, folder: TargetFolder) -> list[str]:
    if chosen is not None and "target" in chosen:
        for target in chosen["target"]:
            if target not in folder.targets:
                raise InputError(f"--cells: {folder.path} has no target {target!r}; it has {', '.join(folder.targets)}")
        return chosen["target"]
    return _first_if(chosen, _there(axes.target, folder.targets))


def _trials(
    axes: Axes, chosen: Mapping[str, list[str]] | None, folder: TargetFolder, target: str
) -> list[tuple[str, int]]:
    """Trials and sizes of one target, by size first."""
    if chosen is not None and "trial" in chosen:
        trials = chosen["trial"]
    else:
        trials = _first_if(chosen, _there(axes.trial, list(folder.trials(target))))
    pairs: list[tuple[str, int]] = []
    for trial in trials:
        if chosen is not None and "size" in chosen:
            sizes = [int(size) for size in chosen["size"]]
        else:
            available = folder.trials(target).get(trial, [])
            known = [size for size in axes.size if folder.has(target, trial, size)] or available
            sizes = _first_if(chosen, known)
        pairs += [(trial, size) for size in sizes]
        for size in sizes or [0]:
            folder.check(target, trial, size)
    return sorted(pairs, key=lambda pair: pair[1])


def _there(configured: Sequence[str], available: list[str]) -> list[str]:
    return [value for value in configured if value in available] or available


def _first_if(chosen: Mapping[str, list[str]] | None, values: list[Any]) -> list[Any]:
    return values if chosen is None else values[:1]


def share(cells: Sequence[Cell], part: int, parts: int) -> list[Cell]:
    """Every ``parts``-th cell, from the ``part``-th, counted from 1."""
    return list(cells[part - 1 :: parts])
