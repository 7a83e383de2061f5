"""Training that obeys a budget of seconds; every model goes through this one loop."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .contest import Clock, Contestant, Crystals, Forward, Rows, peak_memory

Predictor = Callable[[Rows], npt.NDArray[np.float64]]


def rate_factor(progress: float, warmup: float) -> float:
    """Factor on the learning rate: a linear rise, times a cosine to zero.

    Args:
        progress: Share of the budget that is used, 0 to 1.
        warmup: Share over which the rate rises.
    """
    rise = min(1.0, progress / warmup) if warmup > 0 else 1.0
    return rise * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class MovingAverage:
    """Exponential moving average of the weights, with a warm-up so that short runs forget their start."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.count = 0
        self.parameters = list(model.parameters())
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are now."""
        self.count += 1
        keep = min(self.decay, self.count / (self.count + 10.0))
        torch._foreach_lerp_(self.average, [parameter.detach() for parameter in self.parameters], 1.0 - keep)

    @torch.no_grad()
    def put_in_place(self) -> None:
        """Make the averages the model's weights."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.copy_(average)


def train_for(contestant: Contestant, crystals: Crystals, job: dict[str, Any]) -> dict[str, Any]:
    """Train for a budget, then judge the averaged weights; judging is no part of the budget.

    Args:
        contestant: The model.
        crystals: The crystals.
        job: As for ``fit_for``, and ``fit`` and ``judge`` (lists of parts).

    Returns:
        ``mae`` on the judged crystals in the target's unit, None if training broke down, and what it took.
    """
    model_says, found = fit_for(contestant, crystals, parts_of(crystals, job["fit"]), job)
    judged = parts_of(crystals, job["judge"])
    broken = found["train_loss"] is None
    return {"mae": None if broken else float(np.abs(model_says(judged) - crystals.target[judged]).mean()), **found}


def parts_of(crystals: Crystals, parts: list[int]) -> Rows:
    """Rows of the crystals of these parts."""
    return np.flatnonzero(np.isin(crystals.part, parts))


def fit_for(
    contestant: Contestant, crystals: Crystals, fit: Rows, job: dict[str, Any]
) -> tuple[Predictor, dict[str, Any]]:
    """Train on some crystals for a budget.

    Their graphs and compilation are part of the budget. The schedule spans what the two leave, so that a long
    compilation does not eat the warm-up.

    Args:
        contestant: The model.
        crystals: The crystals.
        fit: Rows of those that train.
        job: ``budget`` (seconds), ``learning_rate``, ``weight_decay``, ``warmup``, ``clip``, ``ema_decay``,
            ``batch_size``, ``compile``, ``seed``, ``device``.

    Returns:
        What predicts rows by the averaged weights, in the target's unit, and what it took; ``train_loss`` is None if
        training broke down.
    """
    clock = Clock(job["device"])
    mean, spread = float(crystals.target[fit].mean()), float(crystals.target[fit].std())
    goal = torch.tensor((crystals.target - mean) / spread, dtype=torch.float32, device=job["device"])
    contestant.model.train()
    contestant.prepare(fit)
    graphs = clock.seconds()
    forward: Forward = contestant.forward
    if job["compile"]:
        forward = contestant.compiled()
        _compile(contestant, forward, _batches(fit, job["batch_size"], job["seed"]))
    setup = clock.seconds()
    steps, loss = _steps(contestant, forward, fit, goal, job, clock)
    used = clock.seconds()
    if steps == 0:
        raise SystemExit(f"the budget of {job['budget']:g} s was over before the first step")

    def model_says(rows: Rows) -> npt.NDArray[np.float64]:
        said: npt.NDArray[np.float64] = predict(contestant, rows, job["batch_size"]).numpy() * spread + mean
        return said

    return model_says, {
        "steps": steps,
        "epochs": steps * job["batch_size"] / len(fit),
        "train_loss": loss if math.isfinite(loss) else None,
        "seconds": used,
        "graph_seconds": graphs,
        "setup_seconds": setup,
        "parameters": sum(p.numel() for p in contestant.model.parameters()),
        "peak_memory_mib": peak_memory(job["device"]),
        "torch": torch.__version__,
    }


def _steps(
    contestant: Contestant, forward: Forward, fit: Rows, goal: Tensor, job: dict[str, Any], clock: Clock
) -> tuple[int, float]:
    """Take steps until the next one would exceed the budget; how many, and the last loss."""
    optimizer = contestant.optimizer(job["learning_rate"], job["weight_decay"])
    average = MovingAverage(contestant.model, job["ema_decay"])
    begin = used = clock.seconds()
    steps, loss, longest = 0, math.nan, 0.0
    for rows in _batches(fit, job["batch_size"], job["seed"]):
        if used + longest > job["budget"]:
            break
        for group in optimizer.param_groups:
            group["lr"] = job["learning_rate"] * rate_factor((used - begin) / (job["budget"] - begin), job["warmup"])
        error = (forward(contestant.collate(rows)) - goal[torch.from_numpy(rows)]).abs().mean()
        error.backward()
        torch.nn.utils.clip_grad_norm_(contestant.model.parameters(), job["clip"])
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        steps, loss = steps + 1, float(error.detach())
        if not math.isfinite(loss):
            break
        before, used = used, clock.seconds()
        longest = max(longest, used - before)
    average.put_in_place()
    return steps, loss


def _batches(rows: Rows, size: int, seed: int) -> Iterator[Rows]:
    """Full batches of shuffled rows, epoch after epoch, without end."""
    epoch = 0
    while True:
        order = np.random.default_rng([seed, epoch]).permutation(rows)
        yield from (order[start : start + size] for start in range(0, max(1, len(order) - size + 1), size))
        epoch += 1


def _compile(contestant: Contestant, forward: Forward, batches: Iterator[Rows]) -> None:
    """Two batches of different sizes through forward and backward: nothing is left to compile later."""
    for _ in range(2):
        forward(contestant.collate(next(batches))).abs().mean().backward()
    contestant.model.zero_grad()


@torch.no_grad()
def predict(contestant: Contestant, rows: Rows, batch_size: int) -> Tensor:
    """[K] float64 scaled predictions of crystals whose graphs are built here."""
    contestant.model.eval()
    contestant.prepare(rows)
    parts = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
    return torch.cat([contestant.forward(contestant.collate(part)).double().cpu() for part in parts])
