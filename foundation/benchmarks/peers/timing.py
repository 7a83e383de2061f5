"""Rates of training and predicting, a round at a time, so that the rounds of several models can be interleaved."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .contest import Clock, Contestant, Crystals, Forward, peak_memory, say


def answer_rounds(contestant: Contestant, crystals: Crystals, job: dict[str, Any]) -> None:
    """Warm up, say so, then measure one round for every line of the standard input.

    A training step is forward, loss, backward and AdamW on batches that are made beforehand.

    Args:
        contestant: The model.
        crystals: The crystals.
        job: ``batch_size``, ``batches`` (per round), ``compile``, ``device``.
    """
    order = np.random.default_rng(0).permutation(len(crystals))[: job["batch_size"] * job["batches"]]
    clock = Clock(job["device"])
    contestant.prepare(order)
    graphs = clock.seconds()
    batches = [contestant.collate(rows) for rows in order.reshape(-1, job["batch_size"])]
    goals = torch.tensor(crystals.target[order], dtype=torch.float32, device=job["device"])
    forward = contestant.compiled() if job["compile"] else contestant.forward
    step = _Step(contestant, forward, job["device"])
    goal_of = goals.reshape(-1, job["batch_size"])
    start = clock.seconds()
    step.train(batches[0], goal_of[0])
    first = clock.seconds() - start
    for batch, goal in zip(batches[:2], goal_of, strict=False):
        step.train(batch, goal)
        step.predict(batch)
    say(
        {
            "parameters": sum(p.numel() for p in contestant.model.parameters()),
            "edges_per_crystal": contestant.num_edges(order) / len(order),
            "graphs_per_second": len(order) / graphs,
            "first_step_seconds": first,
            "torch": torch.__version__,
        }
    )
    for _ in sys.stdin:
        trained = sum(step.train(batch, goal) for batch, goal in zip(batches, goal_of, strict=True))
        predicted = sum(step.predict(batch) for batch in batches)
        say(
            {
                "train": len(order) / trained,
                "predict": len(order) / predicted,
                "peak_memory_mib": peak_memory(job["device"]),
            }
        )


class _Step:
    """Seconds of one training step and of one prediction."""

    def __init__(self, contestant: Contestant, forward: Forward, device: str) -> None:
        self.model = contestant.model
        self.forward = forward
        self.clock = Clock(device)
        self.optimizer = contestant.optimizer(1e-4, 1e-2)

    def train(self, batch: Any, goal: Tensor) -> float:
        self.model.train()
        start = self.clock.seconds()
        (self.forward(batch) - goal).abs().mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return self.clock.seconds() - start

    def predict(self, batch: Any) -> float:
        self.model.eval()
        start = self.clock.seconds()
        with torch.no_grad():
            self.forward(batch)
        return self.clock.seconds() - start
