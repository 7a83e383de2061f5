"""`foundation pretrain`: one encoder, many properties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning
from jsonargparse import ArgumentParser

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation.checkpoint import build_module, find_resumable, make_card, save_folder
from foundation.commands.configuration import HeadMaker, head_specs, parse, plain, run_settings, say, training_parser
from foundation.commands.report import print_metrics
from foundation.encoder.encoder import EquivariantEncoder
from foundation.training.denoising import Displacements, module_kind
from foundation.training.optimization import Optimization
from foundation.training.run import claim_folder, clear_run, train
from foundation.training.scaling import fit_scalers
from foundation.training.spec import ModelSpec
from foundation.training.weighting import FixedWeights, TaskWeighting, UncertaintyWeights


def parser() -> ArgumentParser:
    """The options of the command."""
    made = training_parser("foundation pretrain", "Train an encoder jointly on the properties that have a head.")
    made.add_class_arguments(EquivariantEncoder, "encoder")
    made.add_argument("--heads", type=dict[str, HeadMaker], help="property name -> class_path and init_args")
    made.add_argument(
        "--task_weights",
        type=dict[str, float] | str | None,
        default=None,
        help="property name -> weight of its labels (1 where not named), or learned",
    )
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    options = parser()
    config = parse(options, words, default_config="configs/pretrain.yaml")
    recorded = plain(config)
    data = CrystalDataModule(**config.data.as_dict(), seed=config.seed)
    heads = _heads_in_store(config.heads, data)
    folder = claim_folder(config.out, config.name or "pretrain", config.resume, config.overwrite)
    lightning.seed_everything(config.seed, verbose=False)
    spec = ModelSpec(config.encoder.as_dict(), head_specs(heads, data))
    module = build_module(
        spec,
        Optimization(**config.optimization.as_dict()),
        kind=module_kind(Displacements(**config.denoising.as_dict()), config.seed),
        weighting=_weighting(config.task_weights, list(heads)),
    )
    resume = find_resumable(config.resume, spec) if config.resume else None
    data.choose(module.names, module.encoder.recipe)
    say(f"pretrain: {', '.join(module.names)}; {len(data.split.train):,} crystals train; {data.split.how}")
    for note in data.split.notes:
        say(note)
    fit_scalers(module, data)
    if config.overwrite and resume is None:
        clear_run(folder)
    module.card = make_card(spec, module, data)
    settings = run_settings(config, folder, resume, group=None)
    results = train(module, data, settings, config.trainer.as_dict(), recorded)
    if results:
        save_folder(folder / "model", module)  # the form in which a finished encoder is shared
        print_metrics(results["test"], f"test crystals, {folder}")
    return 0


def _heads_in_store(heads: Any, data: CrystalDataModule) -> dict[str, Any]:
    """The configured heads, less those that were not asked for or whose property the store lacks."""
    wanted = data.config["properties"]
    names = [name.strip() for name in wanted.split(",")] if isinstance(wanted, str) else wanted
    heads = dict(heads or {})
    if names is not None:
        unknown = [name for name in names if name not in heads]
        if unknown:
            heads |= {name: {"class_path": "heads.ScalarHead", "init_args": {}} for name in unknown}
        for name in names:
            data.property_of(name)
        return {name: heads[name] for name in names}
    kept = {}
    for name, head in heads.items():
        if data.has(name):
            kept[name] = head
        else:
            say(f"warning: store {data.store.path} has no property {name!r}; its head is dropped")
    if not kept:
        raise InputError(
            f"store {data.store.path} has none of the configured properties {', '.join(heads)}; "
            f"it has {', '.join(data.store.properties)}"
        )
    return kept


def _weighting(given: Any, names: list[str]) -> TaskWeighting:
    if given == "learned":
        return UncertaintyWeights(names)
    if isinstance(given, str):
        raise InputError(f"task_weights {given!r}: give a weight per property, or learned")
    return FixedWeights(names, given)
