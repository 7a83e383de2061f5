"""Muon: steps that change a weight matrix in all of its directions, not in the few that the gradient is full of."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from foundation.training.shards import like, whole

MOMENTUM = 0.95
BETAS, EPS = (0.9, 0.999), 1e-8  # AdamW's, as torch has them
# A step as long as AdamW's: the root mean square of its entries is then about 0.2 (Liu et al., arXiv:2502.16982).
STEP = 0.2
# Five rounds of this polynomial bring singular values between about 0.01 and 1 to between 0.7 and 1.2.
COEFFICIENTS, ROUNDS = (3.4445, -4.7750, 2.0315), 5


class Muon(torch.optim.Optimizer):
    """Muon for groups whose ``matrices`` is true, AdamW for the others, with one learning rate for both.

    Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024), the step's length as in Liu et
    al., "Muon is scalable for LLM training" (2025). torch.optim.Muon does the same to one matrix after the other, and
    takes nothing but matrices; an encoder has many small ones, which are turned in stacks here.

    Args:
        groups: Parameters with ``lr``, ``weight_decay`` (decoupled) and ``matrices``; those of a group of matrices
            have two dimensions.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        super().__init__(groups, {"lr": 1e-3, "weight_decay": 0.0, "matrices": False})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Change every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._turn([group for group in self.param_groups if group["matrices"]])
        for group in self.param_groups:
            if not group["matrices"]:
                self._adamw(_with_gradient(group), group["lr"], group["weight_decay"])
        return loss

    def _turn(self, groups: list[dict[str, Any]]) -> None:
        """Muon, for the matrices of all groups at once: stacks are of one shape, whichever part they belong to."""
        chosen = [(parameter, group) for group in groups for parameter in _with_gradient(group)]
        if not chosen:
            return
        parameters = [parameter for parameter, _ in chosen]
        averages = [self._kept(parameter, "momentum") for parameter in parameters]
        torch._foreach_lerp_(averages, _gradients(parameters), 1.0 - MOMENTUM)
        ahead = torch._foreach_lerp(_gradients(parameters), averages, MOMENTUM)  # Nesterov's
        turned = orthogonalized([whole(change) for change in ahead])
        for (parameter, group), change in zip(chosen, turned, strict=True):
            parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
            parameter.add_(like(parameter, change), alpha=-group["lr"] * STEP * math.sqrt(max(change.shape)))

    def _adamw(self, parameters: list[Tensor], rate: float, decay: float) -> None:
        if not parameters:
            return
        for parameter in parameters:
            self.state[parameter].setdefault("step", torch.zeros((), dtype=torch.float32))
        adamw(
            parameters,
            _gradients(parameters),
            [self._kept(parameter, "exp_avg") for parameter in parameters],
            [self._kept(parameter, "exp_avg_sq") for parameter in parameters],
            [],
            [self.state[parameter]["step"] for parameter in parameters],
            foreach=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=rate,
            weight_decay=decay,
            eps=EPS,
            maximize=False,
        )

    def _kept(self, parameter: Tensor, name: str) -> Tensor:
        state = self.state[parameter]
        if name not in state:
            state[name] = torch.zeros_like(parameter)
        kept: Tensor = state[name]
        return kept


def _with_gradient(group: dict[str, Any]) -> list[Tensor]:
    return [parameter for parameter in group["params"] if parameter.grad is not None]


def _gradients(parameters: list[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def orthogonalized(matrices: list[Tensor]) -> list[Tensor]:
    """Matrices with the same singular vectors, whose singular values are about 1 (Newton-Schulz iteration).

    Args:
        matrices: Each of two dimensions; those of the same shape, or transposed, are done together.
    """
    places: dict[tuple[int, ...], list[int]] = {}
    for place, matrix in enumerate(matrices):
        places.setdefault(tuple(sorted(matrix.shape)), []).append(place)
    turned = list(matrices)
    for shape, chosen in places.items():
        stack = torch.stack([_wide(matrices[place], shape) for place in chosen])  # [K, m, n], m <= n
        stack = stack / stack.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
        a, b, c = COEFFICIENTS
        for _ in range(ROUNDS):
            gram = stack @ stack.mT
            stack = torch.baddbmm(stack, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), stack, beta=a)
        for place, matrix in zip(chosen, stack, strict=True):
            turned[place] = _wide(matrix, tuple(matrices[place].shape))
    return turned


def _wide(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A matrix, transposed where it has not the shape already."""
    return matrix if tuple(matrix.shape) == shape else matrix.mT
