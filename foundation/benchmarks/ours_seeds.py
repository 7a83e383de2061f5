"""Our encoder as `foundation adapt --seeds N` uses it: models of different seeds, whose predictions are averaged.

``python -m foundation.benchmarks.ours_seeds`` does one job of training.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

import numpy as np
import torch

from foundation.benchmarks.ours import Ours
from foundation.benchmarks.peers.contest import Clock, Crystals, say
from foundation.benchmarks.peers.training import fit_for, parts_of
from foundation.process import keep_freed_memory


def train_seeds(crystals: Crystals, job: dict[str, Any]) -> dict[str, Any]:
    """Train the models one after another within one budget, then judge the mean of their predictions.

    A few hundred crystals are learned by heart in minutes, so that of a longer budget there are more models.

    Args:
        crystals: The crystals.
        job: As ``train_for`` of the peers takes it, and ``members``, how many models.

    Returns:
        What ``train_for`` returns.
    """
    clock, judging = Clock(job["device"]), 0.0
    fit, judged = parts_of(crystals, job["fit"]), parts_of(crystals, job["judge"])
    said, took = [], []
    for number in range(job["members"]):
        seed = job["seed"] + number
        torch.manual_seed(seed)
        share = (job["budget"] - (clock.seconds() - judging)) / (job["members"] - number)
        contestant = Ours(crystals, job)
        contestant.model.to(job["device"])
        model_says, found = fit_for(contestant, crystals, fit, {**job, "budget": share, "seed": seed})
        took.append(found)
        begin = clock.seconds()
        said.append(model_says(judged))
        judging += clock.seconds() - begin
    error = float(np.abs(np.mean(said, axis=0) - crystals.target[judged]).mean())
    broken = any(found["train_loss"] is None for found in took)
    return {
        **took[-1],
        "mae": None if broken else error,
        **{name: sum(found[name] for found in took) for name in ("steps", "graph_seconds", "setup_seconds")},
        "seconds": clock.seconds() - judging,
    }


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    torch.set_default_dtype(torch.float32)
    keep_freed_memory()
    job = json.loads(sys.stdin.readline())
    say(train_seeds(Crystals.load(job["data"]), job))
