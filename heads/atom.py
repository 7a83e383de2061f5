"""Labels of each atom: magnetic moments, forces, Born effective charges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from datamodules.errors import InputError
from datamodules.properties import Property
from heads.base import NUM_ELEMENTS
from heads.cartesian import CartesianTensor, DegreeScaler, distance
from heads.cartesian_head import CartesianHead
from heads.constraints import inverse_positive, positive, without_sum
from heads.equivariant import IrrepsReadout
from heads.metrics import Averaged, component_mae, frobenius
from heads.shaped import element_means, has_label, masked_mean

Sign = Literal["signed", "absolute", "flip"]


class AtomHead(CartesianHead):
    """A scalar, vector or tensor of each atom, in the frame of the crystal's lattice vectors.

    Args:
        irreps_in: Irreps of the atom features.
        property: What is predicted.
        formula: Symmetry of the indices: "" takes the property's own, and a scalar where it has none; "i" is a vector,
            "ij" a tensor without symmetry.
        sum_rule: Whether the labels of a crystal add up to nothing, as Born charges do; predictions then do exactly.
        sign: "signed", "absolute" to learn and predict the magnitude of a scalar, which is then not negative, or "flip"
            to compare under the better of the two signs of the whole crystal, where it is arbitrary.
        hidden: Channels of a hidden layer; 0 for a linear head.
        loss: How an error counts, as for a ``TensorHead``.
    """

    reference: Tensor

    def __init__(
        self,
        irreps_in: str,
        property: Property,
        formula: str = "",
        sum_rule: bool = False,
        sign: Sign = "signed",
        hidden: int = 0,
        loss: Literal["l1", "huber", "mse"] = "l1",
    ) -> None:
        super().__init__(irreps_in, property)
        if property.level != "atom":
            raise InputError(f"property {property.name}: an AtomHead predicts a label of each atom")
        self.tensor = CartesianTensor(formula or property.formula)
        if sign != "signed" and self.tensor.rank:
            raise InputError(f"head {property.name}: sign {sign} is for scalars")
        if sum_rule and sign != "signed":
            raise InputError(f"head {property.name}: sum_rule needs sign: signed")
        self.sum_rule = sum_rule
        self.sign = sign
        self.loss_name = loss
        self.irreps_out = self.tensor.irreps
        self.scaler = DegreeScaler(self.irreps_out)
        self.readout = IrrepsReadout(irreps_in, self.irreps_out, per_atom=True, hidden=hidden, bias=not sum_rule)
        self.needs_edges = self.readout.needs_edges
        # What is scalar in the labels, per element, in scaled space: the network learns what is left.
        self.register_buffer("reference", torch.zeros(NUM_ELEMENTS + 1, self.irreps_out.dim))

    def predict(self, scaled: Tensor, batch: Any) -> Tensor:
        """[N, D] scaled irreps -> [N, 3, ...] in physical units, [N] of a scalar."""
        return self.tensor.to_cartesian(self.scaler.physical(self._constrained(scaled, batch)))

    def loss(self, scaled: Tensor, target: Tensor, batch: Any) -> Tensor:
        """[N, D] scaled irreps, [N, ...] physical target -> [N]."""
        return distance(self._constrained(scaled, batch) - self._goal(target), self.loss_name)

    def loss_of_crystals(self, scaled: Tensor, goal: Tensor, there: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
        """As for every shaped head; under "flip" by the better sign of each crystal."""
        losses, known = super().loss_of_crystals(scaled, goal, there, batch)
        if self.sign == "flip":
            losses = torch.minimum(losses, masked_mean(self.loss(scaled, -goal, batch), there, batch))
        return losses, known

    def fit_scaler(self, target: Tensor, batch: Any) -> None:
        """Set scale and references from [N, ...] physical training labels, NaN for an atom that has none."""
        there = has_label(target)
        irreps = self.tensor.to_irreps(self._signed(target[there]))
        if self.sign == "signed":
            self.scaler.fit(irreps, shifts=not self.sum_rule)
        else:  # a magnitude starts from zero, and the sign of a whole crystal is arbitrary
            self.scaler.fit(irreps, shifts=False)
        scaled = self.scaler.scaled(irreps)
        if self.sign == "flip":
            return
        means = torch.zeros_like(self.reference).to(scaled.dtype)
        numbers = batch.z[there]
        counts = torch.bincount(numbers, minlength=NUM_ELEMENTS + 1)
        # A virtual label of the overall mean holds rare elements back.
        overall = scaled.mean(dim=0)
        means = (means.index_add(0, numbers, scaled) + overall) / (counts[:, None] + 1)
        if self.sign == "absolute":
            means = inverse_positive(means.clamp(min=1e-3))
        self.reference.copy_(means * self.scaler.scalars)

    def metrics(self, **sync: Any) -> Mapping[str, Metric]:
        """Those of a scalar; of vectors and tensors, the error of the components and the norm of the error."""
        if not self.tensor.rank:
            return super().metrics(**sync)
        return {"mae": Averaged(component_mae, **sync), "frobenius": Averaged(frobenius, **sync)}

    def comparable(self, predicted: Tensor, target: Tensor, batch: Any) -> Tensor:
        """[N, ...] physical targets as predictions are to be compared with them."""
        if self.sign == "flip":
            there = has_label(target)
            goal = torch.where(there, target, torch.zeros_like(target))
            plain, turned = (masked_mean((predicted - sign * goal).abs(), there, batch) for sign in (1, -1))
            return torch.where((plain <= turned)[batch.batch], target, -target)
        return self._signed(target)

    def baseline(self, target: Tensor, batch: Any, asked: Any) -> Tensor:
        """The mean label of each element."""
        return element_means(self._signed(target), batch, asked)

    def _constrained(self, scaled: Tensor, batch: Any) -> Tensor:
        value = scaled + self.reference[batch.z]
        if self.sign == "absolute":
            return positive(value)
        return without_sum(value, batch).to(scaled.dtype) if self.sum_rule else value

    def _goal(self, target: Tensor) -> Tensor:
        return self.scaler.scaled(self.tensor.to_irreps(self._signed(target)))

    def _signed(self, target: Tensor) -> Tensor:
        return target.abs() if self.sign == "absolute" else target
