"""The scale of every head, from training labels only."""

from __future__ import annotations

import numpy as np

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
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
        heads[name].fit_scaler(labels, data.graphs.gather_atoms(rows))


def check_varied(name: str, data: CrystalDataModule) -> None:
    """Refuse training labels among which there is nothing to tell.

    Raises:
        InputError: If all of them are the same.
    """
    labels = data.training_labels(name)[1]
    if len(labels) > 1 and bool((labels == labels[0]).all()):
        raise InputError(
            f"property {name}: all {len(labels)} training labels are the same, {float(labels[0]):g}; there is nothing "
            "to learn"
        )
