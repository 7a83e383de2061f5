"""What a study's YAML says: the axes of its grid, the recipes of its cells, and where its sources come from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import yaml

from datamodules.errors import InputError
from foundation.commands.parsing import one_line
from foundation.paths import config_path

AXES = ("target", "size", "trial", "seed", "source", "strategy")
LARGER = "larger"  # the row of a recipe for sizes beyond all others

Options = dict[str, Any]
T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """Options of a run by the number of its crystals.

    Attributes:
        rows: Largest size for which the options hold, ascending, and the options: names as on the command line.
    """

    rows: tuple[tuple[float, Options], ...] = ((math.inf, {}),)

    @classmethod
    def parse(cls, content: Any, where: str) -> Recipe:
        """A recipe from ``{200: {option: value}, larger: {option: value}}``.

        Raises:
            InputError: If it is anything else.
        """
        rows: dict[float, Options] = {}
        for size, options in _mapping(content, where).items():
            if size != LARGER and not (isinstance(size, int) and size > 0):
                raise InputError(f"{where}.{size}: a size is a number of crystals, or {LARGER}")
            rows[math.inf if size == LARGER else size] = _mapping(options, f"{where}.{size}")
        return cls(tuple(sorted(rows.items())))

    def options(self, size: int | None) -> Options:
        """Options of a run with this many crystals; None stands for all there are.

        Raises:
            InputError: If the recipe ends below it.
        """
        wanted = math.inf if size is None else size
        for limit, options in self.rows:
            if wanted <= limit:
                return options
        raise InputError(f"no recipe for {size} crystals: the rows end at {self.rows[-1][0]}; add a row {LARGER!r}")


@dataclass(frozen=True)
class Axes:
    """Values of every axis; where a command line names none, their first is taken."""

    target: list[str]
    size: list[int]
    trial: list[str]
    seed: list[int]
    source: list[str]
    strategy: list[str]


@dataclass(frozen=True)
class Pretraining:
    """Where the source "joint" comes from.

    Attributes:
        files: Files beside the folder of the targets.
        properties: Their properties that have a head.
        recipe: Options of ``foundation pretrain`` by the number of crystals.
    """

    files: list[str] = field(default_factory=list)
    properties: list[str] = field(default_factory=list)
    recipe: dict[Any, Any] = field(default_factory=lambda: {LARGER: {}})


@dataclass(frozen=True)
class StudyConfig:
    """A study.

    Attributes:
        data: Name of the folder of targets, for where none is given.
        reference: CSV of another work's results, beside the YAML; None for none.
        properties: Property -> ``unit`` or ``unit:log``, as an import declares them.
        axes: The grid.
        encoder: Arguments of the encoder that is trained from scratch and as a source.
        options: Options of every run.
        recipes: Strategy -> options by size; "others" for strategies without their own.
        pretraining: The source "joint".
        same_quantity: Groups of names of one quantity: none is a source for another of its group.
        path: The file it was read from.
    """

    axes: Axes
    data: str = "devi2024"
    reference: str | None = None
    properties: dict[str, str] = field(default_factory=dict)
    encoder: Options = field(default_factory=dict)
    options: Options = field(default_factory=dict)
    recipes: dict[str, Any] = field(default_factory=dict)
    pretraining: Pretraining = field(default_factory=Pretraining)
    same_quantity: list[list[str]] = field(default_factory=list)
    path: Path = Path()

    def recipe(self, strategy: str) -> Recipe:
        """The recipe of a strategy."""
        name = strategy if strategy in self.recipes else "others"
        return Recipe.parse(self.recipes.get(name, {LARGER: {}}), f"{self.path}: recipes.{name}")

    @property
    def pretraining_recipe(self) -> Recipe:
        """The recipe of a source."""
        return Recipe.parse(self.pretraining.recipe, f"{self.path}: pretraining.recipe")

    def same(self, name: str) -> set[str]:
        """Names of the quantity that goes by this one."""
        return {name}.union(*(group for group in self.same_quantity if name in group))


def load_config(name: str) -> StudyConfig:
    """Read a study's YAML.

    Raises:
        InputError: If there is no such file, or it holds a key or value that a study does not have.
    """
    path = config_path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not YAML: {one_line(str(error))}") from error
    content = _mapping(content, str(path))
    made: dict[str, Any] = {}
    if "axes" in content:
        made["axes"] = _build(Axes, content["axes"], f"{path}: axes")
    if "pretraining" in content:
        made["pretraining"] = _build(Pretraining, content["pretraining"], f"{path}: pretraining")
    config = _build(StudyConfig, {**content, **made}, str(path), given={"path": path})
    for axis in AXES:
        if not getattr(config.axes, axis):
            raise InputError(f"{path}: axes.{axis}: give at least one value")
    for strategy in config.recipes:
        config.recipe(strategy)
    _ = config.pretraining_recipe
    return config


def as_words(options: Mapping[str, Any]) -> list[str]:
    """Options as words of a command line."""
    return [f"--{name}={value if isinstance(value, str) else _plain(value)}" for name, value in options.items()]


def _plain(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("\n...\n").strip()


def _build(kind: type[T], content: Any, where: str, given: Mapping[str, Any] | None = None) -> T:
    values = _mapping(content, where)
    known = [item.name for item in fields(kind) if item.name not in (given or {})]  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise InputError(f"{where}: no key {key!r}; keys are {', '.join(known)}")
    hints = get_type_hints(kind)
    for key, value in values.items():
        if not _fits(value, hints[key]):
            raise InputError(f"{where}: {key}: expected {_named(hints[key])}, found {value!r}")
    try:
        return kind(**values, **(given or {}))
    except TypeError as error:
        raise InputError(f"{where}: {one_line(str(error)).partition('__init__() ')[2]}") from error


def _fits(value: Any, hint: Any) -> bool:
    arguments, origin = get_args(hint), get_origin(hint)
    if hint is Any:
        return True
    if origin is list:
        return isinstance(value, list) and all(_fits(item, arguments[0]) for item in value)
    if origin is dict:
        pairs = value.items() if isinstance(value, dict) else []
        return isinstance(value, dict) and all(_fits(k, arguments[0]) and _fits(v, arguments[1]) for k, v in pairs)
    if arguments:  # a union
        return any(_fits(value, argument) for argument in arguments)
    return isinstance(value, hint) and not (hint is int and isinstance(value, bool))


def _named(hint: Any) -> str:
    return str(hint) if get_args(hint) else str(getattr(hint, "__name__", hint))


def _mapping(content: Any, where: str) -> dict[Any, Any]:
    if not isinstance(content, dict):
        raise InputError(f"{where}: expected keys and values, found {content!r}")
    return content
