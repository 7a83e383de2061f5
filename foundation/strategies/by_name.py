"""Strategies by the names of their files in configs/strategies."""

from __future__ import annotations

from typing import Any

import yaml

from foundation.paths import config_path
from foundation.strategies.base import AdaptationStrategy
from foundation.training.spec import import_subclass


def strategy_config(name: str) -> dict[str, Any]:
    """``class_path`` and ``init_args`` of a file in configs/strategies."""
    content: dict[str, Any] = yaml.safe_load(config_path(f"configs/strategies/{name}.yaml").read_text(encoding="utf-8"))
    return dict(content["strategy"])


def strategy_named(name: str) -> AdaptationStrategy:
    """The strategy of a file in configs/strategies, as it stands there."""
    content = strategy_config(name)
    made: AdaptationStrategy = import_subclass(content["class_path"], AdaptationStrategy)(
        **content.get("init_args", {})
    )
    return made
