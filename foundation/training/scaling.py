"""The scale of every head, from training labels only."""

from __future__ import annotations

import sys

import numpy as np
from torch import Tensor

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.properties import Property
from foundation.process import is_first_process
from foundation.training.module import MultiTaskModule
from heads import Head
from heads.shaped import ShapedHead

MAX_LABELS = 200_000  # a mean of so many is known to 0.2 % of their spread, and more would not fit into memory


def fit_scalers(module: MultiTaskModule, data: CrystalDataModule) -> None:
    """Set the scale of every head from the training labels of its property; heads of others keep theirs.

    Of more than ``MAX_LABELS`` a random part is taken, the same for all processes.

    Raises:
        InputError: If no training crystal carries a label of a property, or labels have another shape than its head.
    """
    heads = dict(module.named_heads())
    for name in data.names:
        rows, labels = data.training_labels(name)
        if not len(rows):
            raise InputError(
                f"property {name}: no training crystal carries a label; drop its head or use another store"
            )
        if len(rows) > MAX_LABELS:
            chosen = np.sort(np.random.default_rng(0).choice(len(rows), MAX_LABELS, replace=False))
            rows, labels = rows[chosen], labels[chosen]
        check_shape(heads[name], labels, data)
        heads[name].fit_scaler(labels, data.graphs.gather_atoms(rows))
    tell_unreachable(module, data)


def check_shape(head: Head, labels: Tensor, data: CrystalDataModule) -> None:
    """Refuse labels [M, ...] of another shape than a head predicts.

    Raises:
        InputError: If they differ.
    """
    name, found = head.property.name, tuple(labels.shape[1:])
    if isinstance(head, ShapedHead) and len(labels) and found != head.shape:
        raise InputError(
            f"property {name}: the labels of store {data.store.path} have the shape {found}, its "
            f"{type(head).__name__} predicts {head.shape}; give --head.init_args that fit, or import the store again "
            f"with --property '{name}:{head.property.unit}:...' that states the formula or grid, so that labels in "
            "another form are brought to it"
        )


def unreachable(module: MultiTaskModule, data: CrystalDataModule) -> dict[str, list[str]]:
    """Property -> ids of the training crystals whose labels no prediction can be: tensors not positive definite."""
    found = {}
    for name, head in module.named_heads():
        if name in data.shaped:
            rows, labels = data.training_labels(name)
            out = ~head.reachable(labels, data.graphs.gather_atoms(rows)).numpy()
            found[name] = [data.store.ids[row] for row in rows[out].tolist()]
    return {name: ids for name, ids in found.items() if ids}


def tell_unreachable(module: MultiTaskModule, data: CrystalDataModule) -> None:
    """Say which training labels no prediction can be equal to."""
    for name, ids in unreachable(module, data).items() if is_first_process() else ():
        listed = ", ".join(ids)
        print(
            f"{name}: {len(ids)} training labels are not positive definite, as predictions are: {listed}",
            file=sys.stderr,
        )


def check_varied(name: str, data: CrystalDataModule) -> None:
    """Refuse training labels among which there is nothing to tell.

    Raises:
        InputError: If all of them are the same.
    """
    labels = data.training_labels(name)[1]
    if len(labels) > 1 and bool((labels == labels[0]).all()):
        value = f", {float(labels[0]):g}" if labels.dim() == 1 else ""
        raise InputError(
            f"property {name}: all {len(labels)} training labels are the same{value}; there is nothing to learn"
        )


def is_number(property: Property) -> bool:
    """Whether what is predicted is one number per crystal: of two classes the probability of one is."""
    return property.is_single and property.classes <= 2


def require_single(property: Property, asker: str) -> None:
    """Refuse what is not one number per crystal, for what knows only such.

    Raises:
        InputError: If it is something else.
    """
    if not is_number(property):
        raise InputError(
            f"{asker}: {property.name} is not one number per crystal (level {property.level}, kind {property.kind}); "
            "adapt to it by a strategy of your choice, with --seeds for an ensemble"
        )
