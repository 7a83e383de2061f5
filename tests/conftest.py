"""What every test may use: real data where it is there, and no calls to the outside."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Set on import, before a test can start W&B, and inherited by the processes that tests start.
os.environ["WANDB_MODE"] = "offline"
os.environ["MPLBACKEND"] = "agg"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets; a test that asks for it is skipped where there is none."""
    folder = Path(os.environ.get("FOUNDATION_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set FOUNDATION_DATA to the folder that holds it")
    return folder
