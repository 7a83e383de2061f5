"""`foundation adapt`: a pretrained encoder, a new head, a strategy, one property."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import yaml
from jsonargparse import ArgumentParser, Namespace

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation import plots
from foundation.adaptation import Adaptation
from foundation.checkpoint import Checkpoint, find_members, find_resumable, load_checkpoint
from foundation.commands.configuration import HeadMaker, head_spec, parse, plain, run_settings, say, training_parser
from foundation.commands.report import print_metrics
from foundation.encoder.encoder import EquivariantEncoder
from foundation.files import write_json, write_text
from foundation.inference import Ensemble, evaluate
from foundation.process import is_first_process
from foundation.strategies.base import AdaptationStrategy
from foundation.strategies.patterns import Patterns
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.run import RunSettings, claim_folder, clear_run, train
from foundation.training.spec import ModelSpec, import_subclass

# A maker, not the class itself: a key misspelt beside class_path is then named in the message.
StrategyMaker = Callable[[], AdaptationStrategy]


def parser() -> ArgumentParser:
    """The options of the command."""
    made = training_parser("foundation adapt", "Adapt a pretrained encoder to one property with few labels.")
    made.add_argument("--pretrained", type=str | None, default=None, help="checkpoint, run folder, or mp-small")
    made.add_argument("--property", type=str, help="the property to adapt to")
    made.add_argument("--strategy", type=StrategyMaker, help="a name in configs/strategies, or class_path")
    made.add_argument("--unfreeze", type=str | None, default=None, help="patterns of parts to train, by commas")
    made.add_argument("--layer_decay", type=float | None, default=None, help="rate per block away from the readout")
    made.add_argument("--seeds", type=int, default=1, help="how many models; several are an ensemble")
    made.add_argument("--head", type=HeadMaker, help="class_path and init_args of the new head")
    made.add_class_arguments(EquivariantEncoder, "encoder")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    options = parser()
    words, strategy_name = _strategy_as_config(list(words))
    config = parse(options, words, default_config="configs/adapt.yaml")
    recorded = plain(config)
    if not config.property:
        raise InputError("--property: say which property to adapt to")
    if config.seeds < 1:
        raise InputError(f"--seeds {config.seeds}: give at least 1")
    if config.seeds > 1 and config.resume:
        raise InputError(f"--resume {config.resume}: goes on with one model, not with --seeds {config.seeds}")
    strategy = _strategy(config)
    pretrained = _pretrained(config.pretrained, strategy)
    data = CrystalDataModule(**config.data.as_dict(), seed=config.seed)
    spec = ModelSpec(
        pretrained.spec.encoder if pretrained is not None else config.encoder.as_dict(),
        {config.property: head_spec(config.head, data.property_of(config.property))},
    )
    name = config.name or f"adapt-{config.property}-{strategy_name}"
    folder = claim_folder(config.out, name, config.resume, config.overwrite)
    encoder = spec.build_encoder()
    strategy.rates(list(encoder.stages()))  # refuses what does not fit this encoder before anything is told or made
    resume = find_resumable(config.resume, spec) if config.resume else None
    data.choose([config.property], encoder.recipe)
    split = data.split
    if config.unfreeze is not None:
        say(f"--unfreeze takes the place of the strategy: {config.unfreeze} train")
    say(f"adapt: {config.property}; {len(split.train)} train, {len(split.val)} validate, {len(split.test)} test")
    for note in (split.how, *split.notes):
        say(note)
    if not len(split.test):
        say("warning: no crystal is left to test on; the error of this model will be unknown")
    settings = run_settings(config, folder, resume, name, runs=config.seeds)
    if config.overwrite and resume is None:
        clear_run(folder)
    adaptation = Adaptation(spec, Optimization(**config.optimization.as_dict()), strategy, pretrained)
    if config.seeds > 1:
        _adapt_ensemble(adaptation, data, settings, config, recorded)
    else:
        results, _ = _adapt_once(adaptation, data, settings, config, recorded)
        if results:
            print_metrics(results["test"], f"test crystals, {folder}")
    return 0


def _adapt_once(
    adaptation: Adaptation, data: CrystalDataModule, settings: RunSettings, config: Namespace, recorded: dict[str, Any]
) -> tuple[dict[str, Any], MultiTaskModule]:
    lightning.seed_everything(settings.seed, verbose=False)
    module, lines = adaptation.module(data)
    for line in lines:
        say(line)
    data.order_seed = settings.seed
    return train(module, data, settings, config.trainer.as_dict(), {**recorded, "seed": settings.seed}), module


def _adapt_ensemble(
    adaptation: Adaptation, data: CrystalDataModule, settings: RunSettings, config: Namespace, recorded: dict[str, Any]
) -> None:
    models, errors = [], []
    for seed in range(config.seed, config.seed + config.seeds):
        member = replace(settings, folder=settings.folder / f"seed{seed}", seed=seed)
        results, module = _adapt_once(adaptation, data, member, config, recorded)
        settings = replace(settings, compile=module.card["numerics"]["compiled"])  # chosen once, for all of them
        models.append(module)
        errors.append(results["test"] if results else {})
    if not is_first_process():
        return
    test, pairs = evaluate(Ensemble(models), data, "test")
    write_json(settings.folder / "metrics.json", {"members": errors, "test": test})
    write_text(settings.folder / "config.yaml", yaml.safe_dump(recorded, sort_keys=False))
    plots.parity(pairs, {config.property: data.property_of(config.property).unit}, settings.folder / "plots/parity.png")
    for number, error in enumerate(errors):
        print_metrics(error, f"test crystals, seed {config.seed + number}")
    print_metrics(test, f"test crystals, mean of {len(models)} models, {settings.folder}")


def _strategy_as_config(words: list[str]) -> tuple[list[str], str]:
    """Turn ``--strategy NAME`` into the strategy's YAML, read after every other file and before all options."""
    files: list[str] = []
    rest: list[str] = []
    name = ""
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
                name = value
        else:
            rest.append(words[position])
        position += taken
    files = files or ["configs/adapt.yaml"]
    if name:
        files.append(name if name.endswith((".yaml", ".yml")) else f"configs/strategies/{name}.yaml")
    return [word for file in files for word in ("--config", file)] + rest, Path(name).stem or "run"


def _strategy(config: Namespace) -> AdaptationStrategy:
    if config.unfreeze is not None:
        patterns = [pattern.strip() for pattern in config.unfreeze.split(",")]
        return Patterns(patterns, layer_decay=1.0 if config.layer_decay is None else config.layer_decay)
    if config.strategy is None:
        raise InputError("--strategy: choose one, such as linear_probe, last_blocks, full or from_scratch")
    arguments: dict[str, Any] = config.strategy.as_dict().get("init_args") or {}
    if config.layer_decay is not None:
        if "layer_decay" not in arguments:
            raise InputError("--layer-decay: this strategy does not decay; use it with full, last_blocks or --unfreeze")
        arguments["layer_decay"] = config.layer_decay
    strategy: AdaptationStrategy = import_subclass(config.strategy.class_path, AdaptationStrategy)(**arguments)
    return strategy


def _pretrained(given: str | None, strategy: AdaptationStrategy) -> Checkpoint | None:
    if given is None:
        if strategy.starts_from_pretrained:
            raise InputError(
                "--pretrained: give a checkpoint to adapt, such as mp-small, or use --strategy from_scratch"
            )
        return None
    members = find_members(given)
    if len(members) > 1:
        raise InputError(f"--pretrained {given}: an ensemble; give one of its members, such as {members[0]}")
    return load_checkpoint(members[0])
