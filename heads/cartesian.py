"""Between a Cartesian tensor with index symmetry and its irreps, through e3nn's reduced tensor products."""

from __future__ import annotations

from functools import lru_cache

import torch
from e3nn import o3
from torch import Tensor, nn

from datamodules.errors import InputError
from datamodules.tensors import index_symmetries, rank_of

# Scales of degrees of which the labels hold next to nothing: dividing by less would blow up their noise.
SMALLEST_SCALE = 0.1  # of the largest


class CartesianTensor(nn.Module):
    """The irreps of a tensor and the way there and back; both ways are orthogonal.

    Args:
        formula: Index symmetry, such as "ij=ji"; "" for a scalar.

    Raises:
        InputError: If the formula cannot be parsed, or leaves nothing of the tensor.
    """

    basis: Tensor

    def __init__(self, formula: str) -> None:
        super().__init__()
        self.formula = formula
        self.rank = rank_of(formula) if formula else 0
        basis, self.irreps = _reduced(formula)
        # In the checkpoint, since another e3nn may find other axes where a degree stands twice.
        self.register_buffer("basis", basis.to(torch.get_default_dtype()))  # [D, 3, 3, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """[3] * rank."""
        return (3,) * self.rank

    def to_irreps(self, tensor: Tensor) -> Tensor:
        """[K, 3, 3, ...] -> [K, D]; what breaks the index symmetry is left out."""
        return tensor.flatten(1) @ self.basis.flatten(1).T.to(tensor.dtype) if self.rank else tensor[:, None]

    def to_cartesian(self, irreps: Tensor) -> Tensor:
        """[K, D] -> [K, 3, 3, ...]."""
        if not self.rank:
            return irreps[:, 0]
        return (irreps @ self.basis.flatten(1).to(irreps.dtype)).view(-1, *self.shape)

    def extra_repr(self) -> str:
        return f"{self.formula or 'scalar'}: {self.irreps}"


class DegreeScaler(nn.Module):
    """One scale per degree and parity, and a shift of the scalars alone: what does not depend on the frame.

    Args:
        irreps: Of the D components.
    """

    shift: Tensor
    scale: Tensor
    place: Tensor
    scalars: Tensor

    def __init__(self, irreps: o3.Irreps) -> None:
        super().__init__()
        self.kinds = sorted({(ir.l, ir.p) for _, ir in irreps})
        places = [self.kinds.index((ir.l, ir.p)) for mul, ir in irreps for _ in range(mul * ir.dim)]
        self.register_buffer("place", torch.tensor(places), persistent=False)
        scalars = [float((ir.l, ir.p) == (0, 1)) for mul, ir in irreps for _ in range(mul * ir.dim)]
        self.register_buffer("scalars", torch.tensor(scalars), persistent=False)
        self.register_buffer("shift", torch.zeros(irreps.dim))
        self.register_buffer("scale", torch.ones(irreps.dim))

    def fit(self, irreps: Tensor, shifts: bool = True) -> None:
        """Set both from [K, D] training labels.

        Args:
            irreps: The labels.
            shifts: Whether scalars are told from their mean.
        """
        if shifts:
            self.shift.copy_(irreps.mean(dim=0) * self.scalars)
        squares = (irreps - self.shift).square().mean(dim=0)
        count = torch.bincount(self.place).to(squares.dtype)
        sums = torch.zeros(len(self.kinds), dtype=squares.dtype).index_add(0, self.place, squares)
        scales = (sums / count).sqrt()
        largest = scales.max() if scales.max() > 0 else torch.ones_like(scales.max())
        self.scale.copy_(scales.clamp(min=SMALLEST_SCALE * float(largest))[self.place])

    def scaled(self, irreps: Tensor) -> Tensor:
        """[K, D] physical -> [K, D] of order one."""
        return (irreps - self.shift) / self.scale

    def physical(self, scaled: Tensor) -> Tensor:
        """The inverse."""
        return scaled * self.scale + self.shift


def distance(difference: Tensor, kind: str) -> Tensor:
    """[K, D] scaled differences -> [K] a loss that no rotation changes.

    Args:
        difference: The differences, in an orthonormal basis of irreps.
        kind: "l1" is the root mean square over the components, linear in the size of the error; "mse" its square;
            "huber" the square below 0.1 and linear beyond.
    """
    square = difference.square().mean(dim=1)
    if kind == "mse":
        return square
    root: Tensor = torch.linalg.vector_norm(difference, dim=1) / difference.shape[1] ** 0.5
    if kind == "huber":
        return torch.where(root < 0.1, square / 0.2, root - 0.05)
    return root


@lru_cache
def _reduced(formula: str) -> tuple[Tensor, o3.Irreps]:
    """[D, 3, 3, ...] orthonormal float64 and its irreps."""
    if not formula:
        return torch.ones(1, dtype=torch.float64), o3.Irreps("0e")
    index_symmetries(formula)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        indices = dict.fromkeys(formula.partition("=")[0], "1o")
        product = o3.ReducedTensorProducts(formula, **indices)
        return product.change_of_basis.detach().clone(), product.irreps_out
    except (ValueError, RuntimeError) as error:
        raise InputError(f"formula {formula!r}: leaves nothing of the tensor, or contradicts itself") from error
    finally:
        torch.set_default_dtype(before)
