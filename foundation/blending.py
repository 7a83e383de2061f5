"""How much a model and its companions say, by what each says of labels not seen.

With few labels a forest or support vectors on descriptors are often as good as an encoder, and their mean better than
all; with very few the median is hard to beat.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from datamodules.properties import Property
from foundation.auto.folds import Folds
from foundation.classical.blended import Weights, blended
from foundation.classical.companions import Companions
from foundation.inference import Values
from foundation.rewriting import replace_head
from foundation.training.module import MultiTaskModule
from foundation.training.spec import HeadSpec

STEPS = 10  # weights are multiples of a tenth
GRID = [
    Weights(*(part / STEPS for part in (*parts, STEPS - sum(parts))))
    for parts in product(range(STEPS, -1, -1), repeat=len(Weights._fields) - 1)
    if sum(parts) <= STEPS
]
ALONE = [Weights(1.0, 0.0, 0.0, 0.0)]


def can_blend(property: Property) -> bool:
    """Whether a mixture of predictions is a prediction: of one number per crystal it is."""
    return property.kind == "scalar" and property.level == "crystal"


def mixtures(said: Values, property: Property) -> Values:
    """Every mixture of the grid.

    Args:
        said: [4, n] what models say, then what their companions say, in physical units.
        property: What is predicted; they are mixed in the space where it is learned.

    Returns:
        [len(GRID), n] in physical units.
    """
    if property.log:
        return np.asarray(10.0 ** (np.array(GRID) @ np.log10(said)), dtype=np.float64)
    return np.asarray(np.array(GRID) @ said, dtype=np.float64)


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


def weigh(folds: Folds, said: Values, property: Property) -> tuple[Weights, dict[str, float]]:
    """The weights with the lowest error, and mean absolute errors in physical units: of each alone and blended.

    Args:
        folds: The labels.
        said: [4, n] what the models say of the labels that they have not seen, then what their companions say, in
            physical units.
        property: What is predicted.
    """
    errors = np.abs(mixtures(said, property) - folds.labels)
    alone = np.abs(said - folds.labels).mean(axis=1)
    told = dict(zip(Weights._fields, alone.tolist(), strict=True))
    best = int(errors.mean(axis=1).argmin())
    return GRID[best], {**told, "blended": float(nested_errors(errors, folds.fold).mean())}


def blend_module(module: MultiTaskModule, name: str, companions: Companions, weights: Weights, folder: Path) -> None:
    """Put a blended head into a trained module and its last checkpoint.

    Args:
        module: The module.
        name: The property.
        companions: Fitted to the same labels.
        weights: How much each says.
        folder: The module's run.
    """
    spec = module.card["spec"]["heads"][name]
    plain = HeadSpec(spec["class_path"], spec["init_args"], Property(**spec["property"]))
    head = dict(module.named_heads())[name]
    new, made = blended(head, plain, companions, weights, module.encoder.recipe)
    module.heads[name] = new
    replace_head(folder / "checkpoints" / "last.ckpt", module, made)
