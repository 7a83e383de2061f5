"""Cross-validated ensembles: every label is predicted by a model that has not seen it, which says how far to trust it.

Of K models each trains without one fold of the labels. What they say of the labels left out gives the error to expect,
and how much weight the encoder, a forest on descriptors and the median of the labels get: with few labels a forest
is often as good as an encoder, and their mean better than both. Each model then carries its forest and these weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.properties import Property
from foundation.auto.folds import Folds, cut
from foundation.checkpoint import replace_head
from foundation.classical.blended import Weights, blended
from foundation.classical.descriptors import describe
from foundation.classical.forest import Forest, fit_forest
from foundation.inference import Ensemble, Values
from foundation.training.module import MultiTaskModule
from foundation.training.spec import HeadSpec

STEPS = 10  # weights are multiples of a tenth
GRID = [
    Weights(a / STEPS, b / STEPS, (STEPS - a - b) / STEPS)
    for a, b in product(range(STEPS, -1, -1), repeat=2)
    if a + b <= STEPS
]

# Trains one model: the data of a fold and its number -> the module, and what its metrics.json holds.
Trainer = Callable[[CrystalDataModule, int], tuple[MultiTaskModule, dict[str, Any]]]


@dataclass(frozen=True)
class Crossfit:
    """What came of it.

    Attributes:
        models: One per fold, blended.
        results: What the metrics.json of each holds.
        weights: What each of the three got.
        errors: Mean absolute errors on labels not seen, in physical units: of the three alone, and of the mixture
            with its weights chosen anew without each fold.
    """

    models: list[MultiTaskModule]
    results: list[dict[str, Any]]
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
        folder: The run; model k has left its checkpoint in ``fold{k}``.
        train: Trains one model.

    Raises:
        InputError: If there are fewer labels than folds, or the property is not one scalar per crystal.
    """
    (name,) = data.names
    property = data.property_of(name)
    if property.kind != "scalar" or property.level != "crystal":
        raise InputError(f"--folds: {name} is not one scalar per crystal; use --seeds")
    folds = cut(data, count, seed, "--folds")
    descriptors = describe(data, folds.rows)
    encoder, trees = np.empty(len(folds.rows)), np.empty(len(folds.rows))
    models, results, forests = [], [], []
    for number in range(count):
        held = folds.fold == number
        module, result = train(folds.data_of(number), number)
        encoder[held] = Ensemble([module]).predict_graphs(data.graphs, folds.rows[held])[name][:, 0]
        forest = fit_forest(descriptors[~held], folds.labels[~held], property, seed=number)
        trees[held] = _physical(forest.predict(descriptors[held]), property)
        models.append(module)
        results.append(result)
        forests.append(forest)
    weights, errors = weigh(folds, encoder, trees, property)
    for number, (module, forest) in enumerate(zip(models, forests, strict=True)):
        median = float(np.median(folds.labels[folds.fold != number]))
        _blend(module, name, forest, weights, median, folder / f"fold{number}")
    return Crossfit(models, results, weights, errors)


def weigh(folds: Folds, encoder: Values, trees: Values, property: Property) -> tuple[Weights, dict[str, float]]:
    """The weights with the lowest error, and the errors.

    Args:
        folds: The labels.
        encoder: [n] what the models say of the labels that they have not seen, in physical units.
        trees: [n] what the forests say.
        property: What is predicted.
    """
    medians = folds.medians()
    three = np.stack([_learned(values, property) for values in (encoder, trees, medians)])  # [3, n]
    mixed = _physical(np.array(GRID) @ three, property)  # [grid, n]
    errors = np.abs(mixed - folds.labels)
    best = int(errors.mean(axis=1).argmin())
    nested = np.empty(len(folds.labels))
    for held in range(folds.count):
        chosen = int(errors[:, folds.fold != held].mean(axis=1).argmin())
        nested[folds.fold == held] = errors[chosen, folds.fold == held]
    alone = {"encoder": encoder, "forest": trees, "median": medians}
    told = {name: float(np.abs(values - folds.labels).mean()) for name, values in alone.items()}
    return GRID[best], {**told, "blended": float(nested.mean())}


def _blend(module: MultiTaskModule, name: str, forest: Forest, weights: Weights, median: float, folder: Path) -> None:
    """Put the blended head into a module and its checkpoint."""
    spec = module.card["spec"]["heads"][name]
    plain = HeadSpec(spec["class_path"], spec["init_args"], Property(**spec["property"]))
    head, made = blended(dict(module.named_heads())[name], plain, forest, weights, median, module.encoder.recipe)
    module.heads[name] = head
    replace_head(folder / "checkpoints" / "last.ckpt", module, made)


def _learned(values: Values, property: Property) -> Values:
    return np.log10(values) if property.log else values


def _physical(values: Values, property: Property) -> Values:
    return np.asarray(10.0**values if property.log else values, dtype=np.float64)
