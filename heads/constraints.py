"""What physics demands of a prediction, met exactly and not by a penalty."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.tensors import VOIGT, index_group
from heads.pooling import crystal_mean

SMALLEST = 1e-5  # eigenvalue of a predicted tensor, relative to its largest

_ROWS, _COLUMNS = (list(axis) for axis in zip(*VOIGT, strict=True))
# The weights that make a tensor's 6 x 6 matrix in Mandel notation rotate by an orthogonal matrix, as a tensor must.
_MANDEL = [1.0, 1.0, 1.0, math.sqrt(2), math.sqrt(2), math.sqrt(2)]


def check_definite(name: str, formula: str) -> None:
    """Refuse a formula whose tensors have no eigenvalues.

    Raises:
        InputError: If it is neither that of a symmetric rank-2 tensor nor that of an elastic one.
    """
    symmetries = index_group(formula)
    if symmetries != index_group("ij=ji") and not symmetries >= index_group("ijkl=jikl=klij"):
        raise InputError(
            f"head {name}: positive_definite needs the formula ij=ji or ijkl=jikl=klij, and not {formula or 'none'}"
        )


def to_matrix(tensor: Tensor) -> Tensor:
    """[K, 3, 3] as it is; [K, 3, 3, 3, 3] -> [K, 6, 6] in Mandel notation."""
    if tensor.dim() == 3:
        return tensor
    factor = torch.tensor(_MANDEL, dtype=tensor.dtype, device=tensor.device)
    rows = tensor[:, _ROWS, _COLUMNS]  # [K, 6, 3, 3]
    return rows[:, :, _ROWS, _COLUMNS] * factor[:, None] * factor


def from_matrix(matrix: Tensor) -> Tensor:
    """The inverse of ``to_matrix``."""
    if matrix.shape[1] == 3:
        return matrix
    factor = torch.tensor(_MANDEL, dtype=matrix.dtype, device=matrix.device)
    matrix = matrix / factor[:, None] / factor
    place = torch.tensor([[VOIGT.index((min(i, j), max(i, j))) for j in range(3)] for i in range(3)])
    return matrix[:, place][..., place]


def is_definite(tensor: Tensor) -> Tensor:
    """[K, 3, 3] or [K, 3, 3, 3, 3] symmetric tensors -> [K] whether all eigenvalues are positive."""
    definite: Tensor = torch.linalg.eigvalsh(to_matrix(tensor))[:, 0] > 0
    return definite


def logarithm(tensor: Tensor) -> Tensor:
    """The matrix logarithm of positive definite tensors, in double precision: as symmetric a tensor as they are."""
    values, vectors = torch.linalg.eigh(to_matrix(tensor.double()))
    return from_matrix(_composed(torch.log(values), vectors))


def exponential(tensor: Tensor) -> Tensor:
    """The inverse of ``logarithm``: positive definite whatever it is given, in double precision.

    No eigenvalue is less than ``SMALLEST`` of the largest, so that rounding to single precision makes none negative.
    """
    values, vectors = torch.linalg.eigh(to_matrix(tensor.double()))
    values = torch.maximum(values, values[:, -1:] + math.log(SMALLEST))
    return from_matrix(_composed(torch.exp(values), vectors))


def invariants(matrix: Tensor) -> Tensor:
    """What of tensors is the same in every frame and linear in them, from what ``to_matrix`` gives.

    Returns:
        [K, 1] mean eigenvalues of rank 2, the value of a polycrystal; [K, 2] bulk and shear modulus of rank 4, Voigt's
        averages.
    """
    trace = matrix.diagonal(dim1=1, dim2=2).sum(dim=1)
    if matrix.shape[1] == 3:
        return trace[:, None] / 3
    bulk = matrix[:, :3, :3].sum(dim=(1, 2)) / 9
    return torch.stack([bulk, (trace - 3 * bulk) / 10], dim=1)


class SymmetricExponential(torch.autograd.Function):
    """Exponential of [K, n, n] symmetric matrices, whose gradient is finite where eigenvalues are equal.

    That of eigenvectors is not, and crystals of high symmetry have equal eigenvalues; ``torch.linalg.matrix_exp`` has
    no such flaw and is slower. The gradient is Daleckii and Krein's: in the frame of the eigenvectors
    every component is multiplied by (exp a - exp b) / (a - b), which is exp a for a = b.
    """

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        """[K, n, n] -> [K, n, n]."""
        values, vectors = torch.linalg.eigh(matrix)
        ctx.save_for_backward(values, vectors)
        return _composed(torch.exp(values), vectors)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Gradient of the result -> gradient of the matrix."""
        values, vectors = ctx.saved_tensors
        apart = values[:, :, None] - values[:, None]
        same = apart.abs() < 1e-12
        slope = torch.where(same, torch.ones_like(apart), torch.expm1(apart) / torch.where(same, 1.0, apart))
        inner = (vectors.mT @ gradient @ vectors) * slope * torch.exp(values)[:, None]
        of_matrix: Tensor = vectors @ inner @ vectors.mT
        return of_matrix


def _composed(values: Tensor, vectors: Tensor) -> Tensor:
    """[K, n] eigenvalues, [K, n, n] eigenvectors -> [K, n, n]."""
    return vectors @ torch.diag_embed(values) @ vectors.mT


def without_sum(values: Tensor, batch: Any) -> Tensor:
    """[N, ...] -> the same less the mean over the atoms of each crystal, so that nothing is left in the sum."""
    return values - crystal_mean(values, batch)[batch.batch]


def positive(values: Tensor) -> Tensor:
    """Any number -> a number that is not negative, the same for large ones."""
    return nn.functional.softplus(values)


def inverse_positive(values: Tensor) -> Tensor:
    """The inverse of ``positive`` for positive values."""
    return values + torch.log(-torch.expm1(-values))
