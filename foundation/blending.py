"""How much a model, a forest on descriptors and the median of the labels say, by what each says of labels not seen.

With few labels a forest is often as good as an encoder, and their mean better than both; with very few the median is
hard to beat.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.properties import Property
from foundation.auto.folds import Folds
from foundation.classical.blended import Weights, blended
from foundation.classical.forest import Forest
from foundation.inference import Values
from foundation.rewriting import replace_head
from foundation.training.module import MultiTaskModule
from foundation.training.spec import HeadSpec

STEPS = 10  # weights are multiples of a tenth
GRID = [
    Weights(a / STEPS, b / STEPS, (STEPS - a - b) / STEPS)
    for a, b in product(range(STEPS, -1, -1), repeat=2)
    if a + b <= STEPS
]
ALONE = [Weights(1.0, 0.0, 0.0)]


def can_blend(property: Property) -> bool:
    """Whether a mixture of predictions is a prediction: of one number per crystal it is."""
    return property.kind == "scalar" and property.level == "crystal"


def mixtures(encoder: Values, forest: Values, medians: Values, property: Property) -> Values:
    """Every mixture of the grid.

    Args:
        encoder: [n] what models say, in physical units.
        forest: [n] what forests say.
        medians: [n] medians.
        property: What is predicted; they are mixed in the space where it is learned.

    Returns:
        [len(GRID), n] in physical units.
    """
    three = np.stack([encoder, forest, medians])
    if property.log:
        return np.asarray(10.0 ** (np.array(GRID) @ np.log10(three)), dtype=np.float64)
    return np.asarray(np.array(GRID) @ three, dtype=np.float64)


def nested_errors(errors: Values, fold: npt.NDArray[np.int64]) -> Values:
    """[n] errors of what is best without each fold, on that fold: the choice does not flatter itself.

    Args:
        errors: [options, n] of every option, for labels that it has not seen.
        fold: [n] fold of each label.
    """
    nested = np.empty(errors.shape[1])
    for held in np.unique(fold):
        best = int(errors[:, fold != held].mean(axis=1).argmin())
        nested[fold == held] = errors[best, fold == held]
    return nested


def weigh(folds: Folds, encoder: Values, forest: Values, property: Property) -> tuple[Weights, dict[str, float]]:
    """The weights with the lowest error, and mean absolute errors in physical units: of each alone and blended.

    Args:
        folds: The labels.
        encoder: [n] what the models say of the labels that they have not seen, in physical units.
        forest: [n] what the forests say.
        property: What is predicted.
    """
    medians = folds.medians()
    errors = np.abs(mixtures(encoder, forest, medians, property) - folds.labels)
    alone = {"encoder": encoder, "forest": forest, "median": medians}
    told = {name: float(np.abs(values - folds.labels).mean()) for name, values in alone.items()}
    best = int(errors.mean(axis=1).argmin())
    return GRID[best], {**told, "blended": float(nested_errors(errors, folds.fold).mean())}


def blend_module(
    module: MultiTaskModule, name: str, forest: Forest, weights: Weights, median: float, folder: Path
) -> None:
    """Put a blended head into a trained module and its last checkpoint.

    Args:
        module: The module.
        name: The property.
        forest: Fitted to the same labels.
        weights: How much each says.
        median: Of the same labels, in physical units.
        folder: The module's run.
    """
    spec = module.card["spec"]["heads"][name]
    plain = HeadSpec(spec["class_path"], spec["init_args"], Property(**spec["property"]))
    head = dict(module.named_heads())[name]
    new, made = blended(head, plain, forest, weights, median, module.encoder.recipe)
    module.heads[name] = new
    replace_head(folder / "checkpoints" / "last.ckpt", module, made)
