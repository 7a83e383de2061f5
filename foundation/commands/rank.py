"""`foundation rank`: which pretrained encoder suits a property, without fine-tuning any of them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodules.errors import InputError
from foundation.commands.parsing import OneLineParser

if TYPE_CHECKING:
    from datamodules.datamodule import CrystalDataModule
    from foundation.encoder.encoder import EquivariantEncoder

FRESH = "fresh weights"

Row = dict[str, Any]


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(
        prog="foundation rank",
        description="Order checkpoints by how well they suit a property, from training labels, without fine-tuning.",
    )
    made.add_argument("checkpoints", nargs="+", metavar="CKPT", help="a .ckpt file, a run's folder, or mp-small")
    made.add_argument("--data.store", dest="store", required=True, help="store with the labels")
    made.add_argument("--property", required=True, help="the property to adapt to")
    made.add_argument("--data.splits", dest="splits", help="id lists; by default the random split of adapt")
    made.add_argument("--data.trial", dest="trial", default="trial1", help="which trial of the lists")
    made.add_argument("--train-size", dest="train_size", type=int, help="labels to use; by default all but the test's")
    made.add_argument("--seed", type=int, default=0, help="seed of the random split and of the fresh weights")
    made.add_argument("--truth", help="JSON file {checkpoint: error after fine-tuning}; reports Kendall's tau")
    made.add_argument("--out", help="JSON file for the table")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    args = parser().parse_args(words)
    import torch

    from datamodules.datamodule import CrystalDataModule
    from datamodules.synonyms import same_quantity
    from foundation.checkpoint import load_checkpoint
    from foundation.commands.configuration import say
    from foundation.transferability import agreement, median_mae

    if args.out and Path(args.out).is_dir():
        raise InputError(f"--out {args.out}: is a folder; give a file")
    truth = _truth(args.truth) if args.truth else {}
    checkpoints = {given: load_checkpoint(_member(given)) for given in args.checkpoints}
    data = CrystalDataModule(
        args.store, splits=args.splits, trial=args.trial, train_size=args.train_size, seed=args.seed
    )
    property = data.property_of(args.property)
    for given, checkpoint in checkpoints.items():
        same = [name for name in checkpoint.seen.names if same_quantity(args.property, name)]
        if same:
            say(f"warning: leakage: {given} was trained on this quantity ({', '.join(same)}); its score says little")
    encoders = {given: checkpoint.build().encoder for given, checkpoint in checkpoints.items()}
    untrained = {checkpoint.spec.encoder_hash: (given, checkpoint.spec) for given, checkpoint in checkpoints.items()}
    for given, spec in untrained.values():
        torch.manual_seed(args.seed)
        encoders[FRESH if len(untrained) == 1 else f"{FRESH}, as {given}"] = spec.build_encoder()
    rows = [_row(name, encoder, data, args.property) for name, encoder in encoders.items()]
    rows.sort(key=lambda row: -float(row["score"]))
    content: Row = {
        "property": property.name,
        "unit": property.unit,
        "store": args.store,
        "split": data.split.how,
        "median_predictor_mae": median_mae(_labelled(data, args.property)[1]),
        "ranking": [{"rank": rank, **row} for rank, row in enumerate(rows, start=1)],
    }
    if truth:
        for measure, sign in (("score", 1), ("loo_mae", -1)):
            content[f"tau_{measure}"] = agreement({row["checkpoint"]: sign * row[measure] for row in rows}, truth)
    _tell(content, args.out)
    return 0


def _row(name: str, encoder: EquivariantEncoder, data: CrystalDataModule, property: str) -> Row:
    """One line of the table; makes the graphs that the encoder takes where the store's cache has none."""
    import numpy as np

    from foundation.features import crystal_features
    from foundation.training.scaling import require_single
    from foundation.transferability import check_labels, suitability

    started = time.perf_counter()
    require_single(data.property_of(property), "rank")
    data.choose([property], encoder.recipe)
    rows, labels = _labelled(data, property)
    check_labels(labels, data.property_of(property))
    features = crystal_features(encoder, data.graphs, rows)
    # The means alone: with the spreads beside them a regression is better, the order of checkpoints is worse.
    features = features[:, : features.shape[1] // 2]
    if not np.isfinite(features).all():
        raise InputError(f"{name}: its features are not finite; training it went wrong")
    found = suitability(features, labels, data.property_of(property))
    return {
        "checkpoint": name,
        "score": found.score,
        "loo_mae": found.loo_mae,
        "labels": len(rows),
        "seconds": round(time.perf_counter() - started, 2),
    }


def _labelled(data: CrystalDataModule, property: str) -> tuple[Any, Any]:
    """Rows that train or validate and carry a label, in the store's order, and their labels in physical units."""
    import numpy as np

    column = data.labels[:, data.names.index(property)].double().numpy()
    rows = np.sort(np.concatenate([data.split.train, data.split.val]))
    rows = rows[~np.isnan(column[rows])]
    return rows, column[rows]


def _member(given: str) -> Any:
    from foundation.checkpoint import find_members

    members = find_members(given)
    if len(members) > 1:
        raise InputError(f"{given}: an ensemble; give one of its members, such as {members[0]}")
    return members[0]


def _truth(path: str) -> Mapping[str, float]:
    try:
        errors = json.loads(Path(path).read_text())
        return {str(name): float(error) for name, error in errors.items()}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"--truth {path}: expected JSON of the form {{checkpoint: error}} ({error})") from error


def _tell(content: Row, out: str | None) -> None:
    from foundation.commands.report import number, print_table
    from foundation.files import write_json

    unit = f" ({content['unit']})" if content["unit"] else ""
    columns = ["rank", "checkpoint", "score", f"LOO MAE{unit}", "labels", "seconds"]
    table = [
        [
            str(row["rank"]),
            row["checkpoint"],
            f"{row['score']:.3f}",
            number(row["loo_mae"]),
            f"{row['labels']:,}",
            f"{row['seconds']:.1f}",
        ]
        for row in content["ranking"]
    ]
    if out:
        write_json(Path(out), content)
    print_table(f"{content['property']}, labels that train or validate; {content['split']}", columns, table)
    print("score: log evidence per label of a linear model on the frozen features (LogME); higher is better")
    print(f"LOO MAE of the median predictor: {number(content['median_predictor_mae'])} {content['unit']}".rstrip())
    if "tau_score" in content:
        taus = number(content["tau_score"]), number(content["tau_loo_mae"])
        print(f"Kendall's tau with the true errors: {taus[0]} by score, {taus[1]} by LOO MAE")
