"""Cross-validated ensembles: every label is predicted by a model that has not seen it, which says how far to trust it.

Of K models each trains without one fold of the labels. What they say of the labels left out gives the error to expect,
and the weights by which each model is blended with its companions, which were fitted to the same labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation.auto.folds import cut
from foundation.blending import blend_module, can_blend, weigh
from foundation.classical.blended import Weights
from foundation.classical.companions import fit_companions
from foundation.classical.descriptors import describe
from foundation.inference import Ensemble
from foundation.training.module import MultiTaskModule

# Trains one model: the data of a fold and its number -> the module.
Trainer = Callable[[CrystalDataModule, int], MultiTaskModule]


@dataclass(frozen=True)
class Crossfit:
    """What came of it.

    Attributes:
        weights: How much the encoder, the forest, the support vectors and the median say.
        errors: Mean absolute errors on labels not seen, in physical units: of each of these alone, and of the mixture
            with its weights chosen anew without each fold.
    """

    weights: Weights
    errors: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for metrics.json."""
        return {"weights": self.weights._asdict(), "mae": self.errors}


def crossfit(data: CrystalDataModule, count: int, seed: int, folder: Path, train: Trainer) -> Crossfit:
    """Train a model per fold, and blend them.

    Args:
        data: The data, one scalar property chosen; what trains and validates there is cut into folds.
        count: How many folds.
        seed: Seed of the cut.
        folder: The run; model k leaves its checkpoint in ``fold{k}``.
        train: Trains one model.

    Raises:
        InputError: If there are fewer labels than folds, or the property is not one scalar per crystal.
    """
    (name,) = data.names
    property = data.property_of(name)
    if not can_blend(property):
        raise InputError(f"--folds: {name} is not one scalar per crystal; use --seeds")
    folds = cut(data, count, seed, "--folds")
    descriptors = describe(data, folds.rows)
    said = np.empty((len(Weights._fields), len(folds.rows)))
    models, beside = [], []
    for number in range(count):
        held = folds.fold == number
        module = train(folds.data_of(number), number)
        said[0, held] = Ensemble([module]).predict_graphs(data.graphs, folds.rows[held])[name][:, 0]
        companions = fit_companions(descriptors[~held], folds.labels[~held], property, seed=number)
        said[1:, held] = companions.physical(descriptors[held], property)
        models.append(module)
        beside.append(companions)
    weights, errors = weigh(folds, said, property)
    for number, (module, companions) in enumerate(zip(models, beside, strict=True)):
        blend_module(module, name, companions, weights, folder / f"fold{number}")
    return Crossfit(weights, errors)
