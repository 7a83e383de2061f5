"""Optimizer, learning-rate schedule and averaging of weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn

from foundation.training.muon import Muon


@dataclass(frozen=True)
class Optimization:
    """How weights are changed.

    Attributes:
        learning_rate: Peak rate of the parts that train at full rate.
        optimizer: "adamw", or "muon" for the weight matrices of the encoder behind its embedding, which learns more
            in a step from scratch and takes a rate of about 3e-3; all else is AdamW's.
        weight_decay: Decay of weight matrices; biases and norms do not decay.
        warmup: Share of the steps over which the rate rises.
        schedule: "cosine" to zero, or "constant" after the warm-up.
        schedule_epochs: Epochs that the schedule spans; None takes the trainer's max_epochs.
        ema_decay: Decay of the moving average of the weights that validates, is saved and predicts; 0 for none.
    """

    learning_rate: float = 2e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: float = 1e-2
    warmup: float = 0.05
    schedule: Literal["cosine", "constant"] = "cosine"
    schedule_epochs: int | None = None
    ema_decay: float = 0.99


def parameter_groups(
    stages: Mapping[str, nn.Module],
    rates: Mapping[str, float],
    others: list[nn.Module],
    settings: Optimization,
    thaws: Mapping[str, float] | None = None,
) -> list[dict[str, Any]]:
    """Groups of the optimizer: one per stage that trains, cut into what decays and what does not.

    Every stage that ever trains is in a group from the first step, at rate zero while it is held still: a part that
    joins the optimizer after the wrap for distributed training is not synchronised.

    Args:
        stages: The encoder's parts.
        rates: Rate of each part relative to ``learning_rate``; 0 means frozen.
        others: Modules that train at full rate: heads and task weights.
        settings: Rates and decay.
        thaws: Share of the steps during which a stage is held still; kept in the groups as ``thaws_at``.

    Returns:
        Groups with ``lr``, ``weight_decay``, ``thaws_at`` and ``matrices``: whether Muon changes them.
    """
    thaws = thaws or {}
    turns = settings.optimizer == "muon"
    # The embedding's rows are looked up one by one: a step that changes all directions alike is none for them.
    parts = [
        (module, rates[name], thaws.get(name, 0.0), turns and name != "embedding")
        for name, module in stages.items()
        if rates[name] > 0
    ]
    parts += [(module, 1.0, 0.0, False) for module in others]
    groups = []
    for module, rate, thaw, turned in parts:
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        for decays in (True, False):
            chosen = [parameter for parameter in parameters if (parameter.dim() > 1) == decays]
            if chosen:
                groups.append(
                    {
                        "params": chosen,
                        "lr": settings.learning_rate * rate,
                        "weight_decay": settings.weight_decay if decays else 0.0,
                        "matrices": decays and turned,
                        "thaws_at": thaw,
                    }
                )
    return groups


def make_optimizer(groups: list[dict[str, Any]], settings: Optimization) -> torch.optim.Optimizer:
    """The optimizer of these groups."""
    return Muon(groups) if settings.optimizer == "muon" else torch.optim.AdamW(groups, foreach=True)


def rate_at(settings: Optimization, total_steps: int, thaws_at: float = 0.0) -> Callable[[int], float]:
    """The schedule: step -> factor on the learning rate.

    Args:
        settings: Shape of the schedule.
        total_steps: Steps that it spans.
        thaws_at: Share of the steps during which the factor is 0; the warm-up follows.
    """
    warmup_steps = max(1, round(settings.warmup * total_steps))
    still = round(thaws_at * total_steps)

    def factor(step: int) -> float:
        if step < still:
            return 0.0
        rise = min(1.0, (step - still + 1) / warmup_steps)
        if settings.schedule == "constant":
            return rise
        return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, step / max(1, total_steps))))

    return factor


class ExponentialAverage(WeightAveraging):
    """Moving average of the weights, with a warm-up so that short runs forget their start.

    Validation, saved checkpoints and predictions use the average; resuming continues the raw weights.

    Args:
        decay: Decay of the average per step.
    """

    def __init__(self, decay: float) -> None:
        @torch.no_grad()
        def update(averaged: list[Tensor], current: list[Tensor], count: Tensor) -> None:
            keep = min(decay, float(count) / (float(count) + 10.0))
            torch._foreach_lerp_(averaged, current, 1.0 - keep)

        super().__init__(use_buffers=False, multi_avg_fn=update)  # buffers do not train: they are copied

    def on_fit_end(self, trainer: Any, pl_module: Any) -> None:
        """Leave the average in the module also where a finished run was resumed, whose training does not start."""
        self._copy_average_to_current(pl_module)
