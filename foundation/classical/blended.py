"""A head whose predictions are mixed with those of a forest and with the median of the labels."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from datamodules.properties import Property
from foundation.classical.descriptors import describe_batch
from foundation.classical.forest import Forest
from foundation.training.spec import HeadSpec
from heads import Head


class Weights(NamedTuple):
    """How much each of three says; they add up to 1."""

    encoder: float
    forest: float
    median: float


class BlendedHead(Head):
    """Another head, whose predictions are mixed with a forest's and the median, in the space where labels are learned.

    It is made after training, from what cross-validation says of the three (``foundation.crossfit``), and trains no
    further.

    Args:
        irreps_in: Irreps of the atom features.
        property: What is predicted.
        base: ``class_path`` and ``init_args`` of the other head.
        recipe: Arguments of the ``NeighborRecipe`` by which the forest's descriptors are made.
        num_trees: Size of the forest.
        num_nodes: Size of its trees.
    """

    weights: Tensor
    median: Tensor

    def __init__(
        self,
        irreps_in: str,
        property: Property,
        base: dict[str, Any],
        recipe: dict[str, Any],
        num_trees: int,
        num_nodes: int,
    ) -> None:
        super().__init__(irreps_in, property)
        self.base = HeadSpec(base["class_path"], base["init_args"], property).build(irreps_in)
        self.recipe = NeighborRecipe(**recipe)
        self.register_buffer("weights", torch.zeros(len(Weights._fields), dtype=torch.float64))
        self.register_buffer("median", torch.zeros((), dtype=torch.float64))
        for name in Forest._fields:
            whole = name in ("feature", "left", "right")
            empty = torch.zeros(num_trees, num_nodes, dtype=torch.int64 if whole else torch.float64)
            self.register_buffer(f"forest_{name}", empty)

    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """[N, irreps_in.dim] atom features -> [B] scaled prediction of the other head."""
        out: Tensor = self.base(features, batch)
        return out

    def predict(self, scaled: Tensor, batch: Any) -> Tensor:
        """[B] scaled prediction of the other head -> [B] in physical units, mixed."""
        own = self._learned(self.base.predict(scaled, batch).double())
        forest = Forest(*(getattr(self, f"forest_{name}").cpu().numpy() for name in Forest._fields))
        # A copy: cpu() moves the batch itself, which other heads and members still need where it is.
        says = forest.predict(describe_batch(copy.copy(batch).cpu(), self.recipe))
        trees = torch.from_numpy(np.asarray(says)).to(own.device)
        encoder, of_forest, of_median = self.weights
        mixed = encoder * own + of_forest * trees + of_median * self._learned(self.median)
        return (torch.pow(10.0, mixed) if self.property.log else mixed).to(scaled.dtype)

    def loss(self, scaled: Tensor, target: Tensor, batch: Any) -> Tensor:
        """The other head's."""
        return self.base.loss(scaled, target, batch)

    def fit_scaler(self, target: Tensor, batch: Any) -> None:
        """It is made with its scale; a fresh one has no forest."""
        raise InputError(f"head {self.property.name}: a blended head is made by --folds and trains no further")

    def _learned(self, values: Tensor) -> Tensor:
        return torch.log10(values) if self.property.log else values


HEAD = f"{BlendedHead.__module__}.{BlendedHead.__qualname__}"  # its class_path


def blended(
    head: Head, spec: HeadSpec, forest: Forest, weights: Weights, median: float, recipe: NeighborRecipe
) -> tuple[BlendedHead, HeadSpec]:
    """A trained head mixed with a forest and the median.

    Args:
        head: The trained head.
        spec: What it was made from.
        forest: The forest, fitted to the same labels.
        weights: How much each says.
        median: Of the same labels, in physical units.
        recipe: By which the graphs are made.

    Returns:
        The blended head, and what it is made from.
    """
    num_trees, num_nodes = forest.feature.shape
    arguments = {
        "base": {"class_path": spec.class_path, "init_args": spec.init_args},
        "recipe": vars(recipe),
        "num_trees": num_trees,
        "num_nodes": num_nodes,
    }
    made = HeadSpec(HEAD, arguments, spec.property)
    new = made.build(str(head.irreps_in))
    assert isinstance(new, BlendedHead)
    new.base = head
    new.weights.copy_(torch.tensor(weights, dtype=torch.float64))
    new.median.fill_(median)
    for name, values in forest._asdict().items():
        getattr(new, f"forest_{name}").copy_(torch.from_numpy(values))
    return new, made
