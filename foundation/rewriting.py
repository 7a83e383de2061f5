"""Changes to a finished checkpoint, written whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from foundation.process import is_first_process
from foundation.training.checkpoint_files import change_last, left_by_training
from foundation.training.module import MultiTaskModule
from foundation.training.spec import HeadSpec


def replace_weights(path: Path, weights: Mapping[str, Tensor]) -> None:
    """Put other weights into a file that Lightning wrote; the rest of it, from which training resumes, stays."""
    _rewrite(path, {"state_dict": {name: tensor.detach().cpu() for name, tensor in weights.items()}})


def replace_head(path: Path, module: MultiTaskModule, head: HeadSpec) -> None:
    """Make a trained module, one of whose heads is another now, the content of its card and file.

    Args:
        path: File that Lightning wrote for the module.
        module: The module.
        head: What the new head is made from.
    """
    spec = module.card["spec"]
    heads = {**spec["heads"], head.property.name: asdict(head)}
    module.card = {**module.card, "spec": {**spec, "heads": heads}}
    state = {name: tensor.detach().cpu() for name, tensor in module.state_dict().items()}
    _rewrite(path, {"state_dict": state, "foundation": module.card})


def _rewrite(path: Path, changes: Mapping[str, Any]) -> None:
    """Change entries of a checkpoint; written whole or not at all, by the first process of a distributed run."""
    if not is_first_process() or not path.is_file():
        return
    content = torch.load(left_by_training(path), map_location="cpu", weights_only=True)
    change_last({**content, **changes}, path)
