"""A head whose predictions are mixed with those of its companions: a forest, support vectors and a median."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from datamodules.errors import InputError
from datamodules.graph import NeighborRecipe
from datamodules.properties import Property
from foundation.classical.companions import Companions
from foundation.classical.descriptors import describe_batch
from foundation.training.spec import HeadSpec
from heads import Head


class Weights(NamedTuple):
    """How much a model and each of its companions say; they add up to 1."""

    encoder: float
    forest: float
    support_vectors: float
    median: float

    def __str__(self) -> str:
        return ", ".join(f"{share:.0%} {name.replace('_', ' ')}" for name, share in self._asdict().items())


class BlendedHead(Head):
    """Another head, whose predictions are mixed with those of companions, in the space where labels are learned.

    It is made after training, from what cross-validation says of all of them (``foundation.crossfit``), and trains no
    further.

    Args:
        irreps_in: Irreps of the atom features.
        property: What is predicted.
        base: ``class_path`` and ``init_args`` of the other head.
        recipe: Arguments of the ``NeighborRecipe`` by which the descriptors are made.
        sizes: Of the companions.
    """

    weights: Tensor

    def __init__(
        self,
        irreps_in: str,
        property: Property,
        base: dict[str, Any],
        recipe: dict[str, Any],
        sizes: dict[str, int],
    ) -> None:
        super().__init__(irreps_in, property)
        self.base = HeadSpec(base["class_path"], base["init_args"], property).build(irreps_in)
        self.recipe = NeighborRecipe(**recipe)
        self.register_buffer("weights", torch.zeros(len(Weights._fields), dtype=torch.float64))
        self.companions = Companions.of_sizes(sizes)

    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """[N, irreps_in.dim] atom features -> [B] scaled prediction of the other head."""
        out: Tensor = self.base(features, batch)
        return out

    def predict(self, scaled: Tensor, batch: Any) -> Tensor:
        """[B] scaled prediction of the other head -> [B] in physical units, mixed."""
        own = self.base.predict(scaled, batch).double()
        own = torch.log10(own) if self.property.log else own
        mixed = self.weights @ torch.cat([own[None], self.companions(describe_batch(batch, self.recipe))])
        return (torch.pow(10.0, mixed) if self.property.log else mixed).to(scaled.dtype)

    def loss(self, scaled: Tensor, target: Tensor, batch: Any) -> Tensor:
        """The other head's."""
        return self.base.loss(scaled, target, batch)

    def fit_scaler(self, target: Tensor, batch: Any) -> None:
        """It is made with its scale; a fresh one has no forest."""
        raise InputError(f"head {self.property.name}: a blended head is made by --folds and trains no further")


HEAD = f"{BlendedHead.__module__}.{BlendedHead.__qualname__}"  # its class_path


def blended(
    head: Head, spec: HeadSpec, companions: Companions, weights: Weights, recipe: NeighborRecipe
) -> tuple[BlendedHead, HeadSpec]:
    """A trained head mixed with its companions.

    Args:
        head: The trained head.
        spec: What it was made from.
        companions: Fitted to the same labels.
        weights: How much each says.
        recipe: By which the graphs are made.

    Returns:
        The blended head, and what it is made from.
    """
    arguments = {
        "base": {"class_path": spec.class_path, "init_args": spec.init_args},
        "recipe": vars(recipe),
        "sizes": companions.sizes,
    }
    made = HeadSpec(HEAD, arguments, spec.property)
    new = made.build(str(head.irreps_in))
    assert isinstance(new, BlendedHead)
    new.base = head
    new.weights.copy_(torch.tensor(weights, dtype=torch.float64))
    new.companions = companions
    return new, made
