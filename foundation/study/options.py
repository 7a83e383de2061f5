"""Options of recipes, checked against the commands they are for before anything runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from jsonargparse import ArgumentParser

from datamodules.errors import InputError
from foundation.commands.configuration import parse
from foundation.study.baselines import BASELINES
from foundation.study.config import Options, StudyConfig, as_words
from foundation.study.plan import AUTO, strategy_files

# What the study says itself.
OWN = (
    *("property", "pretrained", "strategy", "seed", "out", "name", "overwrite", "resume", "wandb", "train_size"),
    *("data.store", "data.splits", "data.trial", "data.train_size", "data.properties", "budget", "config"),
)


def check_options(config: StudyConfig, strategies: Sequence[str], pretrains: bool) -> None:
    """Parse what the recipes say as the commands will.

    Args:
        config: The study.
        strategies: Those of the grid.
        pretrains: Whether the grid has sources that the study trains itself.

    Raises:
        InputError: If an option is unknown, has a wrong value, or is the study's own.
    """
    from foundation.commands import adapt, pretrain

    encoder = {f"encoder.{name}": value for name, value in config.encoder.items()}
    common = {**encoder, **config.options}
    tried: list[tuple[list[str], Options]] = []
    for strategy in dict.fromkeys([*strategies, *config.recipes]):
        if strategy in BASELINES:
            continue
        # The file of the strategy tells which options it takes.
        files = [] if strategy in (AUTO, "others") else strategy_files(strategy)[:1]
        for _, options in config.recipe(strategy).rows:
            models = options.get("seeds", 1)
            if not isinstance(models, int) or models < 1:
                raise InputError(f"{config.path}: recipes.{strategy}: seeds {models!r} is not a number of models")
            if (files, options) not in tried:
                tried.append((files, options))
                _check(config, f"recipes.{strategy}", adapt.parser, ["configs/adapt.yaml", *files], common | options)
    if pretrains:
        for _, options in config.pretraining_recipe.rows:
            _check(config, "pretraining.recipe", pretrain.parser, ["configs/pretrain.yaml"], common | options)


def _check(
    config: StudyConfig, where: str, parser: Callable[[], ArgumentParser], files: list[str], options: Options
) -> None:
    for name in options:
        if str(name).replace("-", "_") in OWN:
            raise InputError(f"{config.path}: {where}: {name} is set by the study itself")
    words = [word for file in files for word in ("--config", file)] + ["--data.store=STORE", *as_words(options)]
    try:
        parse(parser(), words, files[0])
    except InputError as error:
        raise InputError(f"{config.path}: {where}: {error}") from error
