"""`foundation adapt`: a pretrained encoder, a new head, a strategy, one property."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation import plots
from foundation.adaptation import Adaptation
from foundation.checkpoint import Checkpoint, find_members, find_resumable, load_checkpoint
from foundation.commands.configuration import HeadMaker, head_spec, parse, plain, run_settings, say, training_parser
from foundation.commands.report import print_metrics
from foundation.commands.strategies import StrategyMaker, strategy_of, strategy_words
from foundation.encoder.encoder import EquivariantEncoder
from foundation.files import write_json, write_text
from foundation.inference import Ensemble, evaluate
from foundation.process import is_first_process
from foundation.strategies.base import AdaptationStrategy
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.run import RunSettings, claim_folder, clear_run, train


def parser() -> ArgumentParser:
    """The options of the command."""
    made = training_parser("foundation adapt", "Adapt a pretrained encoder to one property with few labels.")
    made.add_argument("--pretrained", type=str | None, default=None, help="checkpoint, run folder, or mp-small")
    made.add_argument("--property", type=str, help="the property to adapt to")
    made.add_argument("--strategy", type=StrategyMaker, help="names in configs/strategies by commas, or class_path")
    made.add_argument("--with_strategies", type=list[StrategyMaker], default=[], help="strategies beside that one")
    made.add_argument("--unfreeze", type=str | None, default=None, help="patterns of parts to train, by commas")
    made.add_argument("--layer_decay", type=float | None, default=None, help="rate per block away from the readout")
    made.add_argument("--seeds", type=int, default=1, help="how many models; several are an ensemble")
    made.add_argument("--head", type=HeadMaker, help="class_path and init_args of the new head")
    made.add_class_arguments(EquivariantEncoder, "encoder")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    options = parser()
    words, strategy_name = strategy_words(list(words))
    config = parse(options, words, default_config="configs/adapt.yaml")
    recorded = plain(config)
    if not config.property:
        raise InputError("--property: say which property to adapt to")
    if config.seeds < 1:
        raise InputError(f"--seeds {config.seeds}: give at least 1")
    if config.seeds > 1 and config.resume:
        raise InputError(f"--resume {config.resume}: goes on with one model, not with --seeds {config.seeds}")
    strategy = strategy_of(config)
    pretrained = _pretrained(config.pretrained, strategy)
    data = CrystalDataModule(**config.data.as_dict(), seed=config.seed)
    head = head_spec(config.head, data.property_of(config.property))
    optimization = Optimization(**config.optimization.as_dict())
    adaptation = Adaptation.of(head, config.encoder.as_dict(), optimization, strategy, pretrained)
    name = config.name or f"adapt-{config.property}-{strategy_name}"
    folder = claim_folder(config.out, name, config.resume, config.overwrite)
    resume = find_resumable(config.resume, adaptation.spec) if config.resume else None
    data.choose([config.property], adaptation.spec.build_encoder().recipe)
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
    module, lines = adaptation.module(data, settings.seed)
    for line in lines:
        say(line)
    recorded = {**recorded, "seed": settings.seed}
    return train(module, data, settings, config.trainer.as_dict(), recorded, adaptation.strategy), module


def _adapt_ensemble(
    adaptation: Adaptation, data: CrystalDataModule, settings: RunSettings, config: Namespace, recorded: dict[str, Any]
) -> None:
    models, members = [], []
    for seed in range(config.seed, config.seed + config.seeds):
        member = replace(settings, folder=settings.folder / f"seed{seed}", seed=seed)
        results, module = _adapt_once(adaptation, data, member, config, recorded)
        settings = replace(settings, compile=module.card["numerics"]["compiled"])  # chosen once, for all of them
        models.append(module)
        members.append(results)
    if not is_first_process():
        return
    parts = {part: evaluate(Ensemble(models), data, part) for part in ("val", "test")}
    test, pairs = parts["test"]
    content = {
        "epochs": members[0]["epochs"],
        "seconds": round(sum(member["seconds"] for member in members), 1),
        "trainable_parameters": members[0]["trainable_parameters"],
        "members": [member["test"] for member in members],
        **{part: found for part, (found, _) in parts.items()},
    }
    write_json(settings.folder / "metrics.json", content)
    write_text(settings.folder / "config.yaml", yaml.safe_dump(recorded, sort_keys=False))
    plots.parity(pairs, {config.property: data.property_of(config.property).unit}, settings.folder / "plots/parity.png")
    for number, errors in enumerate(content["members"]):
        print_metrics(errors, f"test crystals, seed {config.seed + number}")
    print_metrics(test, f"test crystals, mean of {len(models)} models, {settings.folder}")


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
