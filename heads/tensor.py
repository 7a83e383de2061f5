"""Tensors of a crystal: dielectric, elastic, piezoelectric, or any other with a symmetry of its indices."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from datamodules.errors import InputError
from datamodules.properties import Property
from heads.cartesian import CartesianTensor, DegreeScaler, distance
from heads.cartesian_head import CartesianHead
from heads.constraints import (
    SymmetricExponential,
    check_definite,
    exponential,
    invariants,
    is_definite,
    logarithm,
    to_matrix,
)
from heads.equivariant import IrrepsReadout
from heads.metrics import Averaged, UpToSign, aligned, component_mae, frobenius

INVARIANT_WEIGHT = 2.0  # of the error of the invariants beside that of the components

Derive = Literal["elastic", "dielectric", "piezoelectric"]


class TensorHead(CartesianHead):
    """A Cartesian tensor in the frame of the crystal's lattice vectors.

    Loss and scale live in the space of its irreps and do not depend on the frame. What it predicts is invariant
    under the point group of the crystal, since it rotates with the crystal.

    Args:
        irreps_in: Irreps of the atom features.
        property: What is predicted.
        formula: Symmetry of the indices, such as "ijk=ikj"; "" takes the property's own.
        positive_definite: Predict the matrix logarithm (of the 6 x 6 matrix in Mandel notation for rank 4), so that
            every tensor is positive definite. What counts is the error of the tensor itself, and that of its
            invariants (bulk and shear modulus, mean eigenvalue) beside it: an error of the logarithm would weigh a
            stiff crystal as much as a soft one. Labels that are not positive definite train too; predictions come near.
        sign_free: Train and judge by the smaller of |T - P| and |T + P|, where a source does not fix the sign.
        derive: What else to tell of a prediction: see ``foundation.derived``. A refractive index follows only where the
            name of the property says that the dielectric tensor is the electronic one.
        hidden: Channels of a hidden layer; 0 for a linear head.
        loss: How an error counts: "l1" by the root mean square of its components, "mse" by its square, or "huber".
    """

    component_scale: Tensor
    invariant_scale: Tensor

    def __init__(
        self,
        irreps_in: str,
        property: Property,
        formula: str = "",
        positive_definite: bool = False,
        sign_free: bool = False,
        derive: Derive | None = None,
        hidden: int = 0,
        loss: Literal["l1", "huber", "mse"] = "l1",
    ) -> None:
        super().__init__(irreps_in, property)
        formula = formula or property.formula
        if property.level != "crystal" or property.kind != "tensor" or not formula:
            raise InputError(
                f"property {property.name}: a TensorHead predicts a tensor of the crystal with a formula such as "
                "ij=ji; declare one at import, --property name:unit:ij=ji, or with --head.init_args.formula"
            )
        if positive_definite:
            check_definite(property.name, formula)
        self.positive_definite = positive_definite
        self.derive = derive
        self.sign_free = sign_free
        self.loss_name = loss
        self.tensor = CartesianTensor(formula)
        self.irreps_out = self.tensor.irreps
        if sign_free and any(ir.l == 0 and ir.p == 1 for _, ir in self.irreps_out):
            raise InputError(f"head {property.name}: sign_free is for tensors of odd rank, whose sign axes decide")
        self.scaler = DegreeScaler(self.irreps_out)
        if positive_definite:
            self.register_buffer("component_scale", torch.ones(self.irreps_out.dim))
            self.register_buffer("invariant_scale", torch.ones(2 if self.tensor.rank == 4 else 1))
        self.readout = IrrepsReadout(irreps_in, self.irreps_out, per_atom=False, hidden=hidden)
        self.needs_edges = self.readout.needs_edges

    def predict(self, scaled: Tensor, batch: Any) -> Tensor:
        """[B, D] scaled irreps -> [B, 3, 3, ...] in physical units."""
        tensor = self.tensor.to_cartesian(self.scaler.physical(scaled))
        return exponential(tensor).to(scaled.dtype) if self.positive_definite else tensor

    def loss(self, scaled: Tensor, target: Tensor, batch: Any) -> Tensor:
        """[B, D] scaled irreps, [B, 3, 3, ...] physical target -> [B]."""
        if self.positive_definite:
            return self._definite_loss(scaled, target)
        goal = self.scaler.scaled(self.tensor.to_irreps(target))
        losses = distance(scaled - goal, self.loss_name)
        return torch.minimum(losses, distance(scaled + goal, self.loss_name)) if self.sign_free else losses

    def fit_scaler(self, target: Tensor, batch: Any) -> None:
        """Set scales and shift from [M, 3, 3, ...] physical training labels.

        Raises:
            InputError: If none of them can be learned from.
        """
        irreps = self.tensor.to_irreps(target)
        if not self.positive_definite:
            self.scaler.fit(irreps)
            return
        definite = target[self.reachable(target, batch)]
        if not len(definite):
            raise InputError(f"property {self.property.name}: no training label is positive definite")
        self.scaler.fit(self.tensor.to_irreps(logarithm(definite).to(target.dtype)))
        components = DegreeScaler(self.irreps_out).to(irreps)
        components.fit(irreps)
        self.component_scale.copy_(components.scale)
        spread = invariants(to_matrix(target)).std(dim=0, correction=0)
        self.invariant_scale.copy_(torch.where(spread > 0, spread, torch.ones_like(spread)))

    def reachable(self, target: Tensor, batch: Any) -> Tensor:
        """[B] whether a label is as definite as predictions are."""
        return is_definite(target) if self.positive_definite else super().reachable(target, batch)

    def comparable(self, predicted: Tensor, target: Tensor, batch: Any) -> Tensor:
        """[B, 3, 3, ...] physical targets as predictions are to be compared with them."""
        return aligned(target, predicted) if self.sign_free else target

    def metrics(self, **sync: Any) -> Mapping[str, Metric]:
        """Mean absolute error of the components, and norm of the error."""
        measures = {"mae": component_mae, "frobenius": frobenius}
        return {
            name: Averaged(UpToSign(measure) if self.sign_free else measure, **sync)
            for name, measure in measures.items()
        }

    def baseline(self, target: Tensor, batch: Any, asked: Any) -> Tensor:
        """The mean tensor."""
        return target.mean(dim=0).expand(len(asked.num_atoms), *self.shape)

    def _definite_loss(self, scaled: Tensor, target: Tensor) -> Tensor:
        """[B, D], [B, 3, 3, ...] -> [B] error of the tensor and of its invariants, in units of the labels' spread."""
        goal = to_matrix(target.double())
        basis = to_matrix(self.tensor.basis.double())  # [D, n, n], orthonormal as that of the tensors is
        logarithms = torch.einsum("bd,dij->bij", self.scaler.physical(scaled).double(), basis)
        matrix: Tensor = SymmetricExponential.apply(logarithms)  # type: ignore[no-untyped-call]
        error = torch.einsum("bij,dij->bd", matrix - goal, basis) / self.component_scale
        of_invariants = (invariants(matrix) - invariants(goal)) / self.invariant_scale
        losses = distance(error, self.loss_name) + INVARIANT_WEIGHT * of_invariants.abs().mean(dim=1)
        return losses.to(scaled.dtype)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        if self.positive_definite:  # checkpoints from before the tensor's own error counted carry no scales of it
            for name in ("component_scale", "invariant_scale"):
                state_dict.setdefault(f"{prefix}{name}", torch.ones_like(getattr(self, name)))
        super()._load_from_state_dict(state_dict, prefix, *args)
