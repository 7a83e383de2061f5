"""What processes tell one another in a training step: little, at once, and in time for the optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from launching import launch_two
from testing import compounds, make_store
from votes import BAD, COUNTED

from foundation.training.vote import StepVote, Wishes

Found = list[dict[str, Any]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What tests/votes.py leaves, of both processes."""
    folder = tmp_path_factory.mktemp("votes")
    launch_two("votes.py", make_store(folder / "store", compounds(50)), folder)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_a_step_sends_its_gradients_and_one_vote(found: Found) -> None:
    """The gradients of a tiny model are one bucket; no buffers are sent, and nobody is asked anything else."""
    for of_process in found:
        assert of_process["sent"] == {"c10d::allreduce_": 2 * COUNTED}


def test_buffers_stay_the_same_though_they_are_not_sent(found: Found) -> None:
    one, two = (of_process["well"] for of_process in found)
    assert "heads.band_gap.scale" in one["buffers"]
    assert one["same buffers"]
    assert two["same buffers"]
    assert all(torch.equal(buffer, two["buffers"][name]) for name, buffer in one["buffers"].items())


@pytest.mark.parametrize("accumulate", BAD)
def test_a_bad_loss_of_one_process_stops_both_before_weights_change(found: Found, accumulate: int) -> None:
    one, two = (of_process[f"bad {accumulate}"] for of_process in found)
    ids = ", ".join(f"c{row}" for row in two["rows"])  # of the process and the batch that had it
    for of_process in (one, two):
        assert " is not finite at step 1; the batch holds the crystals " in of_process["stopped"]
        assert f" the batch holds the crystals {ids}: " in of_process["stopped"]
        assert of_process["unchanged"]
        assert of_process["batches"] == 2 * accumulate  # the rest of the step, and not a batch more
    assert one["rows"] != two["rows"]


def test_votes_are_counted_over_the_batches_of_a_step() -> None:
    vote, yes, no = StepVote(), torch.tensor(True), torch.tensor(False)
    vote.wishes = Wishes(save=True)
    vote.cast(torch.tensor(3), yes)
    vote.wishes = Wishes()
    vote.cast(torch.tensor(4), no)
    assert vote.granted == Wishes()
    assert vote.count() == (7, 1)
    assert vote.granted == Wishes(save=True)
    vote.cast(torch.tensor(0), yes)
    assert vote.count() == (0, None)
    assert vote.granted == Wishes()
