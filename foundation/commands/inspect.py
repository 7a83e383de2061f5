"""`foundation inspect`: what a checkpoint is made of and what it has seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from foundation.commands.parsing import OneLineParser

if TYPE_CHECKING:
    from datamodules.fingerprints import Seen
    from heads import Head


def parser() -> OneLineParser:
    """The options of the command."""
    made = OneLineParser(prog="foundation inspect", description="Show a checkpoint's parts, heads and data.")
    made.add_argument("checkpoint", help="a .ckpt file, a run's folder, or a shipped encoder")
    return made


def main(words: Sequence[str]) -> int:
    """Run the command."""
    args = parser().parse_args(words)
    from foundation.checkpoint import find_members, load_checkpoint
    from foundation.commands.report import number, print_table

    members = find_members(args.checkpoint)
    checkpoint = load_checkpoint(members[0])
    module = checkpoint.build()
    if len(members) > 1:
        print(f"an ensemble of {len(members)}; shown is {members[0]}")
    stages = [
        [name, f"{sum(p.numel() for p in stage.parameters()):,}", _rate(module.rates[name])]
        for name, stage in module.encoder.stages().items()
    ]
    stages += [
        [f"heads.{name}", f"{sum(p.numel() for p in head.parameters()):,}", "trains"]
        for name, head in module.named_heads()
    ]
    total = sum(p.numel() for p in module.encoder.parameters())
    print_table(
        f"{checkpoint.path}: {total:,} parameters in the encoder", ["part", "parameters", "in training"], stages
    )
    heads = []
    for name, head in module.named_heads():
        scaler = {key: value for key, value in head.named_buffers() if value.dim() == 0}
        heads.append(
            [
                name,
                type(head).__name__,
                head.property.unit or "-",
                _labels(head),
                _options(head),
                ", ".join(f"{key} {number(float(value))}" for key, value in scaler.items()),
            ]
        )
    print_table("heads", ["property", "kind", "unit", "labels", "options", "scaler"], heads)
    print("trained on")
    _print_data(checkpoint.card["data"])
    if checkpoint.card["pretrained"]:
        print(f"starting from {checkpoint.card['pretrained']['path']}, trained on")
        _print_data(checkpoint.card["pretrained"]["data"])
    _print_seen(checkpoint.seen)
    numerics = checkpoint.card.get("numerics")
    if numerics:
        how = "compiled" if numerics["compiled"] else "eager"
        print(f"trained {how}, precision {numerics['precision']}, matrix products {numerics['matmul_precision']}")
    print("made with", ", ".join(f"{name} {version}" for name, version in checkpoint.card["versions"].items()))
    return 0


def _labels(head: Head) -> str:
    """Index symmetry, bins or classes of a label that is not one number, and whether each atom has one."""
    classes = f"{head.property.classes or 2} classes" if head.is_classifier else ""
    shape = getattr(head, "formula", "") or _grid(head) or classes
    return " ".join(word for word in (shape, "of each atom" if head.property.level == "atom" else "") if word) or "-"


def _grid(head: Head) -> str:
    """Bins of a spectrum, as the head has them."""
    from heads import SpectrumHead

    if not isinstance(head, SpectrumHead):
        return ""
    return f"{float(head.grid[0]):g}..{float(head.grid[-1]):g}..{len(head.grid)} {head.grid_unit}".rstrip()


def _options(head: Head) -> str:
    """What a head was told of its labels, where it is not what every head does."""
    from heads import AtomHead, TensorHead

    flags = ("positive_definite", "sign_free", "sum_rule", "nonnegative")
    found = [flag for flag in flags if getattr(head, flag, False)]
    found += [f"sign {head.sign}"] if isinstance(head, AtomHead) and head.sign != "signed" else []
    found += [f"derive {head.derive}"] if isinstance(head, TensorHead) and head.derive else []
    return ", ".join(found) or "-"


def _rate(rate: float) -> str:
    return "frozen" if rate == 0 else ("trains" if rate == 1 else f"trains at {rate:.3g} of the rate")


def _print_seen(seen: Seen) -> None:
    if len(seen):
        counts = ", ".join(f"{name} {count:,}" for name, count in seen.counts.items())
        print(f"fingerprints of {len(seen):,} crystals it has seen: {counts}")
    if not seen.complete:
        print(
            f"what {'else ' if len(seen) else ''}it has seen is unknown: it, or what it started from, has no manifest"
        )


def _print_data(data: dict[str, Any]) -> None:
    split = data["split"]
    print(f"  store {data['store']['name']}, content {data['store']['content_hash'][:12]}")
    print(f"  {split['train']:,} train, {split['val']:,} validate, {split['test']:,} test: {split['how']}")
    for note in split["notes"]:
        print(f"  {note}")
    print("  labels:", ", ".join(f"{name} {count:,}" for name, count in data["labels"].items()))
    print(f"  {len(data['elements'])} elements")
