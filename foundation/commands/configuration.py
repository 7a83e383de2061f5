"""The options of training commands: YAML files, dotted overrides, and the signatures as the schema."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import yaml
from jsonargparse import ActionConfigFile, ArgumentError, ArgumentParser, Namespace

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.properties import Property
from foundation.commands.parsing import bracket_lists, one_line
from foundation.paths import config_path
from foundation.process import is_first_process
from foundation.tracking.server import default_mode
from foundation.training.compilation import Asked
from foundation.training.denoising import Displacements
from foundation.training.optimization import Optimization
from foundation.training.precision import MatmulPrecision
from foundation.training.run import RunSettings
from foundation.training.spec import HeadSpec
from heads import Head

HeadMaker = Callable[[str, Property], Head]

# What a run decides itself.
_OWN_TRAINER_ARGUMENTS = {"logger", "callbacks", "default_root_dir", "use_distributed_sampler", "plugins", "profiler"}


def training_parser(prog: str, description: str) -> ArgumentParser:
    """A parser with what every training run takes: data, optimization, trainer, names and tracking."""
    parser = ArgumentParser(prog=prog, description=description, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--config", action=ActionConfigFile, help="YAML file; later options override it")
    parser.add_argument("--name", type=str, help="name of the run; its folder is runs/NAME")
    parser.add_argument("--out", type=str | None, default=None, help="folder of the run, instead of runs/NAME")
    parser.add_argument("--overwrite", type=bool, default=False, help="go on where OUT holds a run already")
    parser.add_argument("--resume", type=str | None, default=None, help="checkpoint of this run to go on from")
    parser.add_argument("--wandb", type=str | None, default=None, help="offline, online or off")
    parser.add_argument("--compile", type=Asked, default="auto", help="compile the encoder; auto: where it pays")
    parser.add_argument(
        "--matmul_precision", type=MatmulPrecision, default="highest", help="high allows TF32 products on a GPU"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, split and order of batches")
    parser.add_argument("--train_size", type=int | None, default=None, help="the same as --data.train_size")
    parser.add_class_arguments(CrystalDataModule, "data", skip={"seed"})
    parser.add_class_arguments(Optimization, "optimization")
    parser.add_class_arguments(Displacements, "denoising")
    parser.add_class_arguments(lightning.Trainer, "trainer", skip=_OWN_TRAINER_ARGUMENTS)
    return parser


def parse(parser: ArgumentParser, words: Sequence[str], default_config: str) -> Namespace:
    """Parse a command line, with the shipped configuration where none is given.

    Raises:
        InputError: For any mistake in the files or options, in one line.
    """
    words = [_with_underscores(word) for word in words]
    words = bracket_lists(words, ("--data.exclude", "--pretrained"))
    if "--help" in words or "-h" in words:
        parser.exit_on_error = True
        parser.parse_args(["--help"])
    if not any(word == "--config" or word.startswith("--config=") for word in words):
        words = ["--config", default_config, *words]
    words = _resolve_configs(words)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the libraries whose signatures are read
            config = parser.parse_args(words)
    except (ArgumentError, TypeError, ValueError, OSError, SystemExit) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(one_line(getattr(error, "message", None) or str(error))) from error
    if config.train_size is not None:
        config.data.train_size = config.train_size
    if config.wandb not in (None, "offline", "online", "off"):
        raise InputError(f"--wandb {config.wandb}: choose offline, online or off")
    return config


def plain(config: Namespace) -> dict[str, Any]:
    """The configuration as plain values, as config.yaml records it."""
    values: dict[str, Any] = config.clone().as_dict()
    values.pop("config", None)
    return values


def head_specs(heads: Any, data: CrystalDataModule) -> dict[str, HeadSpec]:
    """Heads as configured, with their properties looked up in the store.

    Args:
        heads: Property name -> {class_path, init_args}.
        data: The data.

    Raises:
        InputError: If the store lacks a property.
    """
    return {name: head_spec(head, data.property_of(name)) for name, head in heads.items()}


def head_spec(head: Any, property: Property) -> HeadSpec:
    """One head as configured."""
    init_args = head.get("init_args") or {}
    init_args = init_args.as_dict() if isinstance(init_args, Namespace) else dict(init_args)
    return HeadSpec(head["class_path"], init_args, property)


def run_settings(config: Namespace, folder: Path, resume: str | None, group: str | None, runs: int = 1) -> RunSettings:
    """Where and how a run of this configuration is recorded."""
    return RunSettings(
        folder=folder,
        wandb=config.wandb or default_mode(),
        seed=config.seed,
        resume=resume,
        group=group,
        compile=config.compile,
        runs=runs,
        matmul_precision=config.matmul_precision,
    )


def say(line: str) -> None:
    """Tell the person at the terminal, once."""
    if is_first_process():
        print(line, file=sys.stderr, flush=True)


def _with_underscores(word: str) -> str:
    name, equals, value = word.partition("=")
    return name.replace("-", "_").replace("__", "--", 1) + equals + value if name.startswith("--") else word


def _resolve_configs(words: list[str]) -> list[str]:
    out = list(words)
    for position, word in enumerate(words):
        if word == "--config":
            if position + 1 == len(words):
                raise InputError("--config: give a YAML file")
            out[position + 1] = _config_file(words[position + 1])
        elif word.startswith("--config="):
            out[position] = f"--config={_config_file(word.removeprefix('--config='))}"
    return out


def _config_file(name: str) -> str:
    path = config_path(name)
    try:
        yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"--config {path}: not YAML: {one_line(str(error))}") from error
    return str(path)
