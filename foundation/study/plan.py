"""A study as asked for: its configuration, where things are, and what the command line adds."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from datamodules.errors import InputError
from foundation.paths import config_path
from foundation.study.baselines import BASELINES
from foundation.study.config import StudyConfig
from foundation.study.folder import TargetFolder
from foundation.study.grid import NONE, Cell
from foundation.study.scale import scaled_per_unit
from foundation.study.sources import Given, Source, declarations, make_store, parse_source

AUTO = "auto"  # the strategy that chooses among all others


@dataclass(frozen=True)
class Plan:
    """What every process of a study knows.

    Attributes:
        config: The YAML.
        folder: The targets.
        out: Where everything is written.
        given: Sources from the command line by name.
        budget: Seconds a cell may train; None for no bound.
        leakage: What to do where an encoder has seen test labels, as ``foundation adapt`` takes it; None for its own.
        retry: Whether cells that failed earlier are run again.
        keep_models: Whether the models of cells are kept.
        run_id: Tells this start of the study from others.
    """

    config: StudyConfig
    folder: TargetFolder
    out: Path
    given: dict[str, Given]
    budget: float | None = None
    leakage: str | None = None
    retry: bool = False
    keep_models: bool = False
    run_id: str = ""

    def cell_folder(self, cell: Cell) -> Path:
        """Where a cell's run is."""
        return self.out / "cells" / cell.name

    def cell_file(self, cell: Cell) -> Path:
        """What a cell leaves behind."""
        return self.out / "cells" / f"{cell.name}.json"

    def cell_lock(self, cell: Cell) -> Path:
        """Held by the process that computes a cell."""
        return self.out / "cells" / f".{cell.name}.lock"

    def source(self, cell: Cell) -> Source | None:
        """What a cell starts from; None for fresh weights."""
        if cell.source == NONE:
            return None
        return parse_source(cell.source, cell.target, self.config, self.folder, self.given)

    def store(self, target: str) -> Path:
        """The store of a target, imported where it is not there yet.

        Raises:
            Busy: If another process is importing it.
        """
        declared = declarations(self.config, [target])
        file = self.folder.records(target)
        job = {"records": self.folder.digest(target)["records"], "declared": declared}
        return make_store(self.out / "stores" / target, [file], declared, job)

    def scale(self, target: str) -> float:
        """Units of the reference's scale per physical unit of a target.

        Raises:
            Busy: If another process is importing it.
            InputError: If its records carry no label, or only one distinct value.
        """
        from datamodules.store import CrystalStore

        file = self.folder.records(target)
        store = CrystalStore.open(self.store(target))
        if target not in store.properties:
            raise InputError(f"{file}: its records carry neither 'value' nor {target!r}")
        return scaled_per_unit(file, np.asarray(store.labels([target])[:, 0]))


def strategy_files(strategy: str) -> list[str]:
    """Shipped YAML files that a strategy's name stands for; several are joined by ``+``."""
    return [f"configs/strategies/{name}.yaml" for name in strategy.split("+")]


@cache
def needs_source(strategy: str) -> bool | None:
    """Whether a strategy starts from a source (True), never does (False), or does either (None).

    Raises:
        InputError: If there is no such strategy.
    """
    from foundation.strategies.by_name import strategy_named

    if strategy in BASELINES:
        return False
    if strategy == AUTO:
        return None
    return strategy_named(strategy.split("+")[0]).starts_from_pretrained


@cache
def strategy_digest(strategy: str) -> str:
    """Hash of what the shipped files say of a strategy."""
    files = [] if strategy in BASELINES else ["configs/adapt.yaml"]
    if strategy not in (*BASELINES, AUTO):
        files += strategy_files(strategy)
    return hashlib.sha256(repr([_content(file) for file in files]).encode()).hexdigest()[:16]


def check_strategies(strategies: Sequence[str]) -> None:
    """Raise an InputError for the first strategy that does not exist."""
    for strategy in strategies:
        if strategy in (*BASELINES, AUTO):
            continue
        for file in strategy_files(strategy):
            try:
                config_path(file)
            except InputError as error:
                known = sorted(path.stem for path in config_path("configs/strategies/full.yaml").parent.glob("*.yaml"))
                names = ", ".join([AUTO, *BASELINES, *known])
                raise InputError(f"no strategy {Path(file).stem!r}; strategies are {names}") from error


def _content(file: str) -> Any:
    return yaml.safe_load(config_path(file).read_text(encoding="utf-8"))
