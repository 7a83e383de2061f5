"""From what stands behind ``--strategy`` to the strategy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from datamodules.errors import InputError
from foundation.paths import config_path
from foundation.strategies.base import AdaptationStrategy
from foundation.strategies.combined import Combined
from foundation.strategies.patterns import Patterns
from foundation.training.spec import import_subclass

# A maker, not the class itself: a key misspelt beside class_path is then named in the message.
StrategyMaker = Callable[[], AdaptationStrategy]


def strategy_words(words: list[str]) -> tuple[list[str], str]:
    """Turn ``--strategy NAME[,NAME...]`` into YAML files, read after every other file and before all options.

    Returns:
        The words, and a name for a run.
    """
    files: list[str] = []
    rest: list[str] = []
    names: list[str] = []
    position = 0
    while position < len(words):
        option, equals, value = words[position].partition("=")
        taken = 1
        if option in ("--config", "--strategy"):
            if not equals:
                if position + 1 == len(words):
                    raise InputError(f"{option}: a value is missing")
                value, taken = words[position + 1], 2
            if option == "--config":
                files.append(value)
            else:
                names = [name.strip() for name in value.split(",")]
        else:
            rest.append(words[position])
        position += taken
    files = files or ["configs/adapt.yaml"]
    own = [name if name.endswith((".yaml", ".yml")) else f"configs/strategies/{name}.yaml" for name in names]
    # The first one last: its rates hold, and options such as --strategy.init_args.rate change it.
    files += own[::-1]
    beside = [_read(file).get("strategy") for file in own[1:]]
    extra = [f"--with_strategies={json.dumps(beside)}"] if beside else []
    name = "-".join(Path(name).stem for name in names) or "run"
    return [word for file in files for word in ("--config", file)] + extra + rest, name


def strategy_of(config: Namespace) -> AdaptationStrategy:
    """The strategy that a parsed command line asks for.

    Raises:
        InputError: If there is none, or it does not take what it is given.
    """
    if config.unfreeze is not None:
        patterns = [pattern.strip() for pattern in config.unfreeze.split(",")]
        return Patterns(patterns, layer_decay=1.0 if config.layer_decay is None else config.layer_decay)
    if config.strategy is None:
        raise InputError("--strategy: choose one, such as linear_probe, last_blocks, full or from_scratch")
    first = _make(config.strategy, config.layer_decay)
    return Combined([first, *map(_make, config.with_strategies)]) if config.with_strategies else first


def _make(given: Any, layer_decay: float | None = None) -> AdaptationStrategy:
    arguments: dict[str, Any] = given.as_dict().get("init_args") or {}
    if layer_decay is not None:
        if "layer_decay" not in arguments:
            raise InputError("--layer-decay: this strategy does not decay; use it with full, last_blocks or --unfreeze")
        arguments["layer_decay"] = layer_decay
    strategy: AdaptationStrategy = import_subclass(given.class_path, AdaptationStrategy)(**arguments)
    return strategy


def _read(file: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load(config_path(file).read_text(encoding="utf-8"))
    return content
