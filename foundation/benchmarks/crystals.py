"""The crystals that rates are measured on, and the encoder that they are measured with."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from datamodules.crystals import Crystal, as_crystal
from datamodules.properties import KNOWN
from datamodules.readers import read_source
from foundation.paths import config_path
from foundation.quickstart.prototypes import starts
from foundation.training.optimization import Optimization
from foundation.training.spec import HeadSpec, ModelSpec

BATCH_SIZE = 32
NUM_CRYSTALS = 800
EVERY = 8


def encoder_config() -> dict[str, Any]:
    """Arguments of the encoder that pretraining uses: the one that every table of errors is made with."""
    config: dict[str, Any] = _pretraining()["encoder"]
    return config


def optimization() -> Optimization:
    """How pretraining changes weights."""
    return Optimization(**_pretraining()["optimization"])


def benchmark_spec() -> ModelSpec:
    """That encoder with one scalar head."""
    target = KNOWN["formation_energy_per_atom"]
    return ModelSpec(encoder_config(), {target.name: HeadSpec("heads.ScalarHead", {}, target)})


def benchmark_crystals(data: Path | None, count: int = NUM_CRYSTALS) -> list[Crystal]:
    """Every eighth crystal of a JSON-lines file, or the prototypes that ship, unrelaxed.

    Args:
        data: The file; None for the prototypes.
        count: How many at most.
    """
    if data is None:
        return [as_crystal(start.atoms()) for start in starts()][:count]
    records = islice(read_source(data), 0, count * EVERY, EVERY)
    return [record.crystal for record in records if record.crystal is not None]


def _pretraining() -> dict[str, Any]:
    config: dict[str, Any] = yaml.safe_load(config_path("configs/pretrain.yaml").read_text())
    return config
