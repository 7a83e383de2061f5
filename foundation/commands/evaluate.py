"""`foundation evaluate`: how good a checkpoint is on a part of a store."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from foundation.commands.parsing import OneLineParser


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(prog="foundation evaluate", description="Metrics of a checkpoint on a part of a store.")
    made.add_argument("checkpoint", help="a .ckpt file, a run's folder (all seeds of it), or a shipped encoder")
    made.add_argument("--data.store", dest="store", required=True, help="store with the labels")
    made.add_argument("--split", default="test", choices=("train", "val", "test", "all"), help="which part")
    made.add_argument("--data.splits", dest="splits", help="id lists; by default as in training")
    made.add_argument("--data.trial", dest="trial", help="which trial of the lists")
    made.add_argument("--train-size", dest="train_size", type=int, help="which size of the trial")
    made.add_argument(
        "--leakage", default="warn", choices=("warn", "exclude", "error"), help="labels it was trained on"
    )
    made.add_argument("--batch-size", dest="batch_size", type=int, default=64)
    made.add_argument("--out", help="folder for metrics.json and plots; by default runs/evaluate-NAME-SPLIT")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    args = parser().parse_args(words)
    from datamodules.datamodule import CrystalDataModule, Part
    from datamodules.errors import InputError
    from foundation import plots
    from foundation.checkpoint import find_members, load_checkpoint
    from foundation.commands.configuration import say
    from foundation.commands.report import print_metrics
    from foundation.files import write_json
    from foundation.inference import Ensemble, evaluate
    from foundation.leakage import check_leakage

    checkpoints = [load_checkpoint(member) for member in find_members(args.checkpoint)]
    trained = checkpoints[0].card["data"]
    given = {"store": args.store, "splits": args.splits, "trial": args.trial, "train_size": args.train_size}
    config = trained["config"] | {key: value for key, value in given.items() if value is not None}
    if args.split != "train":
        config["exclude"] = None  # concerns training crystals only
    data = CrystalDataModule(**(config | {"batch_size": args.batch_size}))
    ensemble = Ensemble([checkpoint.build() for checkpoint in checkpoints])
    known = [name for name in ensemble.names if data.has(name)]
    if not known:
        raise InputError(
            f"store {args.store} has no label that {args.checkpoint} predicts: {', '.join(ensemble.names)}"
        )
    data.choose(known, ensemble.recipe)
    parts: list[Part] = ["train", "val", "test"] if args.split == "all" else [args.split]
    leakage = check_leakage(data, checkpoints, args.leakage, say, parts, judging=parts)
    if data.store.content_hash != trained["store"]["content_hash"] and args.split != "all":
        say("warning: not the store this model was trained on, so this split is a new one")
    found = evaluate(ensemble, data, args.split)
    out = Path(args.out) if args.out else _folder(Path(args.checkpoint), args.split)
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "checkpoint": args.checkpoint,
        "store": args.store,
        "split": args.split,
        args.split: found.metrics,
        "leakage": leakage,
    }
    write_json(out / "metrics.json", content)
    plots.parity(found.pairs, {name: data.property_of(name).unit for name in known}, out / "plots" / "parity.png")
    print_metrics(found.metrics, f"{args.split} crystals of {args.store}, {args.checkpoint}, {out}")
    return 0


def _folder(checkpoint: Path, part: str) -> Path:
    """``runs/evaluate-NAME-PART``, where NAME is that of the checkpoint's run."""
    run = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint
    return Path("runs") / f"evaluate-{run.stem}-{part}"
