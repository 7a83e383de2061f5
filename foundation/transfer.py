"""From a checkpoint to a module: what is copied, and what is told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from datamodules.errors import InputError
from foundation.checkpoint import Checkpoint
from foundation.training.spec import encoder_defaults


def encoder_of(checkpoint: Checkpoint, given: Mapping[str, object]) -> dict[str, Any]:
    """Arguments of the checkpoint's encoder, its products computed by what is given.

    Args:
        checkpoint: The checkpoint.
        given: Arguments from the command line and configuration files. Those that are the encoder's defaults say
            nothing, since shipped configurations write some of them down.

    Raises:
        InputError: If another argument is given than the checkpoint has.
    """
    defaults = encoder_defaults()
    own = defaults | checkpoint.spec.encoder
    said = {name: value for name, value in given.items() if value != defaults[name]}
    for name, value in said.items():
        if name != "products" and value != own[name]:
            raise InputError(
                f"encoder.{name} {value}: the encoder of {checkpoint.path} has {own[name]}; leave it out, "
                "or leave --pretrained out to train such an encoder from scratch"
            )
    return checkpoint.spec.encoder | ({"products": said["products"]} if "products" in said else {})


def transfer(encoder: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Copy the checkpoint's encoder into this one; heads are not touched.

    Returns:
        What was kept, one line.

    Raises:
        InputError: If the two encoders do not fit.
    """
    given = {
        name.removeprefix("encoder."): tensor
        for name, tensor in checkpoint.weights.items()
        if name.startswith("encoder.")
    }
    own = encoder.state_dict()
    wrong = [name for name in own if name not in given or own[name].shape != given[name].shape] or sorted(
        set(given) - set(own)
    )
    if wrong:
        raise InputError(f"{checkpoint.path}: its encoder does not fit the configured one at {wrong[0]}")
    encoder.load_state_dict(given)
    count = sum(tensor.numel() for tensor in given.values())
    return [f"kept: the whole encoder, {len(given)} tensors, {count:,} values, from {checkpoint.path}"]


def transfer_heads(heads: nn.ModuleDict, checkpoint: Checkpoint, names: Sequence[str]) -> list[str]:
    """Copy some of the checkpoint's heads, their scales included, into the heads of the same names.

    Returns:
        Which heads were kept and which dropped, one line each.
    """
    for name in names:
        start = f"heads.{name}."
        heads[name].load_state_dict(
            {key.removeprefix(start): tensor for key, tensor in checkpoint.weights.items() if key.startswith(start)}
        )
    dropped = sorted(set(checkpoint.spec.heads) - set(names))
    lines = [f"kept: the heads {', '.join(sorted(names))} and their scales"] if names else []
    return lines + ([f"dropped: its heads {', '.join(dropped)}"] if dropped else [])
