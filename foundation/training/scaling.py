"""The scale of every head, from training labels only."""

from __future__ import annotations

import sys

import numpy as np

from datamodules.datamodule import CrystalDataModule, Rows
from datamodules.errors import InputError
from datamodules.properties import Property
from foundation.process import is_first_process
from foundation.training.module import MultiTaskModule

MAX_LABELS = 200_000  # a mean of so many is known to 0.2 % of their spread, and more would not fit into memory


def fit_scalers(module: MultiTaskModule, data: CrystalDataModule) -> None:
    """Set the scale of every head from the training labels of its property; heads of others keep theirs.

    Of more than ``MAX_LABELS`` a random part is taken, the same for all processes.

    Raises:
        InputError: If no training crystal carries a label of a property.
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
        batch = data.graphs.gather_atoms(rows)
        _tell_out_of_reach(name, rows[~heads[name].reachable(labels, batch).numpy()], data)
        heads[name].fit_scaler(labels, batch)


def _tell_out_of_reach(name: str, rows: Rows, data: CrystalDataModule) -> None:
    """List the crystals whose labels no prediction can be equal to: tensors that are not positive definite."""
    if len(rows) and is_first_process():
        ids = ", ".join(data.store.ids[row] for row in rows.tolist())
        print(
            f"{name}: {len(rows)} training labels are not positive definite, as predictions are: {ids}", file=sys.stderr
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


def require_single(property: Property, asker: str) -> None:
    """Refuse what is not one number per crystal, for what knows only such.

    Raises:
        InputError: If it is something else.
    """
    if not property.is_single or property.classes > 2:
        raise InputError(
            f"{asker}: {property.name} is not one number per crystal (level {property.level}, kind {property.kind}); "
            "adapt to it by a strategy of your choice, with --seeds for an ensemble"
        )
