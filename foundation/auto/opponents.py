"""What costs nothing, by the same folds: the median and trees on descriptors, or the mean tensor and its like."""

from __future__ import annotations

import numpy as np
import torch

from foundation.auto.folds import Folds
from foundation.classical.companions import COUNT, fit_companions
from foundation.classical.descriptors import describe
from foundation.classical.trees import fit_trees
from foundation.inference import Values
from foundation.largest_errors import crystal_errors
from foundation.training.spec import HeadSpec
from heads.shaped import ShapedHead

_ANY = "8x0e+8x1o+8x2e"  # irreps that any head can be built on


def of_numbers(folds: Folds) -> tuple[Values, dict[str, Values]]:
    """[3, n] out-of-fold predictions of companions, which may be mixed in, and [n] of each opponent."""
    property = folds.data.property_of(folds.data.names[0])
    described = describe(folds.data, folds.rows)
    trees, beside = np.empty(len(folds.rows)), np.empty((COUNT, len(folds.rows)))
    for held in range(folds.count):
        out = folds.fold == held
        trees[out] = fit_trees(described[~out], folds.labels[~out], property, seed=held).predict(described[out])
        companions = fit_companions(described[~out], folds.labels[~out], property, seed=held)
        beside[:, out] = companions.physical(described[out], property)
    return beside, {"the median": folds.medians(), "gradient-boosted trees": trees}


def of_shapes(folds: Folds, spec: HeadSpec) -> tuple[Values, dict[str, Values]]:
    """The same for what is not one number per crystal, as errors: there are no companions, and one guess."""
    head, name = spec.build(_ANY), folds.data.names[0]
    errors = np.empty(len(folds.rows))
    for held in range(folds.count):
        data = folds.data_of(held)
        rows, labels = data.training_labels(name)
        asked = data.graphs.gather_atoms(data.split.test)
        if isinstance(head, ShapedHead):
            guess = head.baseline(labels, data.graphs.gather_atoms(rows), asked)
        else:
            shares = torch.bincount(labels.long(), minlength=spec.property.classes) / len(labels)
            guess = shares.expand(len(data.split.test), -1)
        target = head.comparable(guess, data.targets(name, data.split.test), asked)
        errors[folds.fold == held] = crystal_errors(head, guess, target, asked)[:, 2]
    return np.zeros((COUNT, len(folds.rows))), {"a guess by the mean": errors}
