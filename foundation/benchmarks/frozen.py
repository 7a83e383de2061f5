"""What it saves to compute the frozen part of the encoder once: epochs of adaptation with and without."""

from __future__ import annotations

import time
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np

from datamodules.datamodule import CrystalDataModule
from foundation.auto.candidates import Setting
from foundation.checkpoint import Checkpoint
from foundation.inference import Ensemble
from foundation.strategies.by_name import strategy_named
from foundation.training.optimization import Optimization
from foundation.training.spec import HeadSpec
from foundation.training.trainer import fit_quietly

STRATEGIES = ("full", "last_blocks", "linear_probe")


def compare_epochs(data: CrystalDataModule, name: str, checkpoint: Checkpoint, rounds: int) -> list[dict[str, Any]]:
    """Time epochs of every strategy, with what is frozen computed once and computed in every step, in turn.

    Args:
        data: Crystals with labels of the property.
        name: The property.
        checkpoint: What is adapted.
        rounds: How often everything is timed; medians are given.

    Returns:
        One row per strategy: processor seconds of an epoch, and the largest difference between the predictions of
        both ways, in units of the spread of the labels.
    """
    setting = Setting(
        HeadSpec("heads.ScalarHead", {}, data.property_of(name)),
        {},
        Optimization(),
        {"": checkpoint},
        {"accelerator": "cpu", "gradient_clip_val": 1.0},
    )
    data.choose([name], setting.by(strategy_named(STRATEGIES[0])).spec.build_encoder().recipe)
    rows = []
    for strategy in STRATEGIES:
        seconds: dict[bool, list[float]] = {True: [], False: []}
        predicted = {}
        for _ in range(rounds):
            for cache in (True, False):
                taken, predicted[cache] = _epoch(setting, data, strategy, cache)
                seconds[cache].append(taken)
        spread = float(data.training_labels(name)[1].std())
        rows.append(
            {
                "strategy": strategy,
                "seconds": median(seconds[True]),
                "seconds_without": median(seconds[False]),
                "difference": float(np.abs(predicted[True] - predicted[False]).max()) / spread,
            }
        )
    return rows


def _epoch(setting: Setting, data: CrystalDataModule, strategy: str, cache: bool) -> tuple[float, Any]:
    """Processor seconds of one epoch, from runs of 1 and 4, and what the longer run predicts."""
    spent = []
    for epochs in (1, 4):
        adaptation = replace(setting.by(strategy_named(strategy)), cache=cache)
        module, _ = adaptation.module(data, 0)
        began = time.process_time()
        fit_quietly(module, data, {**setting.trainer, "max_epochs": epochs}, adaptation.strategy)
        spent.append(time.process_time() - began)
    rows = data.split.rows("val" if len(data.split.val) else "train")
    return (spent[1] - spent[0]) / 3, Ensemble([module]).predict_graphs(data.graphs, rows)[data.names[0]]
