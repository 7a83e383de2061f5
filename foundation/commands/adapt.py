"""`foundation adapt`: a pretrained encoder, a new head, a strategy, one property."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any, NamedTuple

import yaml
from jsonargparse import ArgumentParser, Namespace

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation import plots
from foundation.adaptation import Adaptation
from foundation.auto.candidates import AutoSettings, Setting
from foundation.auto.choose import choose
from foundation.checkpoint import Checkpoint, find_members, load_checkpoint
from foundation.commands.configuration import HeadMaker, head_spec, parse, plain, run_settings, say, training_parser
from foundation.commands.parsing import duration
from foundation.commands.report import number, print_metrics
from foundation.commands.strategies import StrategyMaker, strategy_of, strategy_words
from foundation.crossfit import crossfit
from foundation.encoder.encoder import EquivariantEncoder
from foundation.files import write_json, write_text
from foundation.inference import Ensemble, evaluate
from foundation.leakage import PARTS, Mode, check_leakage, record_leakage
from foundation.process import is_distributed, is_first_process
from foundation.resuming import AUTO, NEVER, find_resumable
from foundation.strategies.base import AdaptationStrategy
from foundation.strategies.from_scratch import FromScratch
from foundation.tracking.ensemble import record_ensemble
from foundation.training.compilation import choice_of
from foundation.training.denoising import Displacements
from foundation.training.module import MultiTaskModule
from foundation.training.optimization import Optimization
from foundation.training.run import RunSettings, claim_folder, clear_run, track, train
from foundation.training.scaling import unreachable


def parser() -> ArgumentParser:
    """The options of the command."""
    made = training_parser("foundation adapt", "Adapt a pretrained encoder to one property with few labels.")
    made.add_argument(
        "--pretrained",
        type=list[str] | str | None,
        default=None,
        help="checkpoint, run folder, or mp-small; several for --strategy auto to choose from",
    )
    made.add_argument("--property", type=str, help="the property to adapt to")
    made.add_argument("--strategy", type=StrategyMaker, help="names in configs/strategies by commas, or class_path")
    made.add_argument("--with_strategies", type=list[StrategyMaker], default=[], help="strategies beside that one")
    made.add_argument("--unfreeze", type=str | None, default=None, help="patterns of parts to train, by commas")
    made.add_argument("--layer_decay", type=float | None, default=None, help="rate per block away from the readout")
    made.add_argument("--budget", type=str | None, default=None, help="time for --strategy auto, such as 10m")
    made.add_class_arguments(AutoSettings, "auto")
    made.add_argument("--seeds", type=int, default=1, help="how many models; several are an ensemble")
    made.add_argument("--leakage", type=Mode, default="warn", help="what to do where the encoder knows test labels")
    made.add_argument(
        "--folds",
        type=int,
        default=0,
        help="train a model without each of so many folds; the labels left out say what to expect and how much weight "
        "a forest and support vectors on descriptors and the median get beside the models",
    )
    made.add_argument("--head", type=HeadMaker, help="class_path and init_args of the new head")
    made.add_class_arguments(EquivariantEncoder, "encoder")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    options = parser()
    words, strategy_name = strategy_words(list(words))
    config = parse(options, words, default_config="configs/adapt.yaml")
    auto = strategy_name == "auto"
    _check(config, auto)
    strategy = None if auto else strategy_of(config)
    sources = _sources(config.pretrained, strategy)
    data = CrystalDataModule(**config.data.as_dict(), seed=config.seed)
    setting = Setting(
        head_spec(config.head, data.property_of(config.property)),
        config.encoder.as_dict(),
        Optimization(**config.optimization.as_dict()),
        sources,
        config.trainer.as_dict(),
        Displacements(**config.denoising.as_dict()),
    )
    settings = AutoSettings(**config.auto.as_dict())
    if auto:
        setting.candidates(settings)  # refuses a strategy that there is not, before anything is told
    adaptation = setting.by(strategy or FromScratch())
    name = config.name or f"adapt-{config.property}-{strategy_name}"
    folder = claim_folder(config.out, name, config.resume, config.overwrite)
    several = config.folds > 0 or config.seeds > 1
    # Of several models each goes on in its own folder.
    resume = config.resume if several else find_resumable(config.resume, folder, adaptation.spec)
    data.choose([config.property], adaptation.spec.build_encoder().recipe)
    encoders = list(sources.values()) if strategy is None or strategy.starts_from_pretrained else []
    # The search judges on folds of the training crystals.
    leakage = check_leakage(data, encoders, config.leakage, say, judging=PARTS if auto else ("val", "test"))
    _introduce(data, config)
    recorded, verdict = plain(config), None
    if auto:
        choice = choose(setting, data, settings, duration(config.budget or "10m"), config.seed)
        adaptation, data, verdict = choice.adaptation, choice.data, choice.verdict
        for line in verdict.lines:
            say(line)
        config.folds, config.trainer.max_epochs = choice.folds, verdict.epochs
        recorded |= {"optimization": asdict(adaptation.optimization), "trainer": config.trainer.as_dict()}
    if config.overwrite and resume in (None, NEVER):
        clear_run(folder)
    run = run_settings(config, folder, resume, name, runs=config.folds or config.seeds)
    adapt = _adapt_folds if config.folds else _adapt_seeds if config.seeds > 1 else _adapt_once
    metrics = adapt(adaptation, data, run, config, recorded)
    if verdict is not None and metrics:
        write_json(folder / "metrics.json", {**metrics, "auto": verdict.as_dict()})
    record_leakage(folder, leakage)
    return 0


def _check(config: Namespace, auto: bool) -> None:
    """Refuse what does not go together.

    Raises:
        InputError: In one line.
    """
    if not config.property:
        raise InputError("--property: say which property to adapt to")
    if config.seeds < 1:
        raise InputError(f"--seeds {config.seeds}: give at least 1")
    resumes = config.resume not in (None, NEVER, AUTO)
    if config.seeds > 1 and resumes:
        raise InputError(f"--resume {config.resume}: goes on with one model, not with --seeds {config.seeds}")
    if config.budget is not None and not auto:
        raise InputError("--budget: only --strategy auto takes one; bound another by --trainer.max_time 00:00:10:00")
    if auto and (resumes or is_distributed()):
        raise InputError("--strategy auto: searches in one process and is not resumed; run what it chose by name")
    if config.folds and (auto or config.seeds > 1 or resumes or is_distributed()):
        raise InputError("--folds: does not go together with --strategy auto, --seeds, --resume or several processes")


class _Member(NamedTuple):
    """One of several models: trained, with what its metrics.json holds, where it is recorded, and its data."""

    module: MultiTaskModule
    results: dict[str, Any]
    run: RunSettings
    data: CrystalDataModule


def _adapt_once(
    adaptation: Adaptation, data: CrystalDataModule, run: RunSettings, config: Namespace, recorded: dict[str, Any]
) -> dict[str, Any]:
    results, _ = _train(adaptation, data, run, config, recorded)
    if results:
        print_metrics(results["test"], f"test crystals, {run.folder}")
    return results


def _train(
    adaptation: Adaptation, data: CrystalDataModule, run: RunSettings, config: Namespace, recorded: dict[str, Any]
) -> tuple[dict[str, Any], MultiTaskModule]:
    module, lines = adaptation.module(data, run.seed)
    for line in lines:
        say(line)
    recorded = {**recorded, "seed": run.seed}
    return train(module, data, run, config.trainer.as_dict(), recorded, adaptation.strategy), module


def _member(adaptation: Adaptation, run: RunSettings, name: str, seed: int) -> RunSettings:
    """One of several models: its folder and seed, and what it goes on from, each by itself."""
    folder = run.folder / name
    return replace(run, folder=folder, seed=seed, resume=find_resumable(run.resume, folder, adaptation.spec))


def _adapt_seeds(
    adaptation: Adaptation, data: CrystalDataModule, run: RunSettings, config: Namespace, recorded: dict[str, Any]
) -> dict[str, Any]:
    members = []
    for seed in range(config.seed, config.seed + config.seeds):
        own = _member(adaptation, run, f"seed{seed}", seed)
        results, module = _train(adaptation, data, own, config, recorded)
        run = replace(run, compile=choice_of(module, run.compile))  # chosen once, for all of them
        members.append(_Member(module, results, own, data))
    if not is_first_process():
        return {}
    for place, member in enumerate(members):
        print_metrics(member.results["test"], f"test crystals, seed {config.seed + place}")
    return _conclude(members, data, run, config, recorded, {})


def _adapt_folds(
    adaptation: Adaptation, data: CrystalDataModule, run: RunSettings, config: Namespace, recorded: dict[str, Any]
) -> dict[str, Any]:
    compiled = run.compile
    members = []

    def train_fold(part: CrystalDataModule, fold: int) -> MultiTaskModule:
        nonlocal compiled
        own = replace(_member(adaptation, run, f"fold{fold}", config.seed + fold), compile=compiled)
        results, module = _train(adaptation, part, own, config, recorded)
        compiled = choice_of(module, compiled)  # chosen once, for all of them
        members.append(_Member(module, results, own, part))
        return module

    made = crossfit(data, config.folds, config.seed, run.folder, train_fold)
    unit = data.property_of(config.property).unit
    told = ", ".join(f"{name.replace('_', ' ')} {number(error)}" for name, error in made.errors.items())
    say(f"folds: MAE on labels left out, {unit}: {told}; predictions are {made.weights}")
    return _conclude(members, data, run, config, recorded, {"crossfit": made.as_dict()})


def _conclude(
    members: list[_Member],
    data: CrystalDataModule,
    run: RunSettings,
    config: Namespace,
    recorded: dict[str, Any],
    found: dict[str, Any],
) -> dict[str, Any]:
    """What the mean of several models is worth, on file, in print and in the record of each."""
    ensemble = Ensemble([member.module for member in members])
    val, test = evaluate(ensemble, data, "val"), evaluate(ensemble, data, "test")
    metrics = {
        **{key: members[0].results[key] for key in ("epochs", "trainable_parameters", "encoder")},
        "split": data.split.how,
        "notes": data.split.notes,
        "seconds": round(sum(member.results["seconds"] for member in members), 1),
        "members": [member.results["test"] for member in members],
        "not_positive_definite": unreachable(members[0].module, data),
        **found,
        "val": val.metrics,
        "test": test.metrics,
    }
    write_json(run.folder / "metrics.json", metrics)
    write_text(run.folder / "config.yaml", yaml.safe_dump(recorded, sort_keys=False))
    pairs = (test if len(data.split.test) else val).pairs
    plots.parity(pairs, {config.property: data.property_of(config.property).unit}, run.folder / "plots/parity.png")
    for member in members:
        tracker = track(member.module, member.data, member.run, {**recorded, "seed": member.run.seed})
        if tracker is not None:
            record_ensemble(tracker, metrics, run.folder)
            tracker.finish()
    print_metrics(test.metrics, f"test crystals, mean of {len(members)} models, {run.folder}")
    return metrics


def _introduce(data: CrystalDataModule, config: Namespace) -> None:
    split = data.split
    if config.unfreeze is not None:
        say(f"--unfreeze takes the place of the strategy: {config.unfreeze} train")
    say(f"adapt: {config.property}; {len(split.train)} train, {len(split.val)} validate, {len(split.test)} test")
    for note in (split.how, *split.notes):
        say(note)
    if not len(split.test):
        say("warning: no crystal is left to test on; the error of this model will be unknown")


def _sources(given: list[str] | str | None, strategy: AdaptationStrategy | None) -> dict[str, Checkpoint]:
    """The checkpoints to start from, by the names given; several only where one is to be chosen."""
    names = [given] if isinstance(given, str) else given or []
    if not names and strategy is not None and strategy.starts_from_pretrained:
        raise InputError("--pretrained: give a checkpoint to adapt, such as mp-small, or use --strategy from_scratch")
    if len(names) > 1 and strategy is not None:
        raise InputError(f"--pretrained {' '.join(names)}: several are for --strategy auto; give one")
    sources = {}
    for name in names:
        members = find_members(name)
        if len(members) > 1:
            raise InputError(f"--pretrained {name}: an ensemble; give one of its members, such as {members[0]}")
        sources[name] = load_checkpoint(members[0])
    if len({checkpoint.spec.build_encoder().recipe for checkpoint in sources.values()}) > 1:
        raise InputError(f"--pretrained {' '.join(names)}: made from graphs of different recipes; give those of one")
    return sources
