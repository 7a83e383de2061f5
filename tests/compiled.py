"""A short compiled pretraining as one of two processes, which leaves its weights and how they were trained.

Run as ``python compiled.py STORE OUT`` with torchrun's variables in the environment, once per process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from testing import QUIET, TINY

from foundation.cli import main
from foundation.commands import pretrain

if __name__ == "__main__":
    store, out = Path(sys.argv[1]), Path(sys.argv[2])
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(out / "cache")
    train = pretrain.train

    def kept(module: Any, *arguments: Any, **named: Any) -> dict[str, Any]:
        results = train(module, *arguments, **named)
        calls = all(block._compiled_call_impl is not None for block in module.encoder.blocks)
        content = {"weights": module.state_dict(), "compiled": module.card["numerics"]["compiled"] and calls}
        torch.save(content, out / f"rank{os.environ['RANK']}.pt")
        return results

    pretrain.train = kept
    words = ["pretrain", "--data.store", store, "--data.properties", "band_gap", *TINY, *QUIET, "--compile", "true"]
    words += ["--encoder.num_blocks", 1, "--data.batch_size", 4, "--trainer.max_epochs", 1, "--out", out / "run"]
    sys.exit(main([str(word) for word in [*words, "--trainer.devices", 2, "--trainer.strategy", "ddp"]]))
