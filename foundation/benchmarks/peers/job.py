"""One job of a contestant's process: it comes in as a line of JSON, and so do the results go out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch

from .contest import Contestant, Crystals, say
from .timing import answer_rounds
from .training import train_for


def main(build: Callable[[Crystals, dict[str, Any]], Contestant]) -> None:
    """Do the job that stands as JSON on the first line of the standard input.

    Results are lines of JSON on the standard output. Loading the crystals and importing the libraries is not part
    of any measured time.

    Args:
        build: Makes the contestant for these crystals and this job.
    """
    job = json.loads(sys.stdin.readline())
    crystals = Crystals.load(job["data"])
    torch.manual_seed(job["seed"])
    contestant = build(crystals, job)
    contestant.model.to(job["device"])
    if job["do"] == "train":
        say(train_for(contestant, crystals, job))
    else:
        answer_rounds(contestant, crystals, job)
