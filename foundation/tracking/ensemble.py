"""What the record of a member says of its ensemble, which is there only after all members have trained."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foundation.checkpoint import load_checkpoint
from foundation.tracking.artifacts import model_artifact
from foundation.tracking.ending import final_metrics
from foundation.tracking.logger import Tracker


def record_ensemble(tracker: Tracker, results: Mapping[str, Any], folder: Path) -> None:
    """Add metrics ``ensemble/PART/PROPERTY/METRIC``, the parity plot, and the member as the ensemble holds it.

    A member of folds gets its companions after its training, so its checkpoint is another than the one recorded then.
    Where it is the same, W&B knows it by its content and makes no new version.

    Args:
        tracker: The record of a member, begun again.
        results: What the ensemble's metrics.json holds.
        folder: The ensemble's folder.
    """
    told = {f"ensemble/{name.removeprefix('final/')}": value for name, value in final_metrics(results).items()}
    tracker.record(lambda: tracker.run.summary.update(told))
    picture = folder / "plots" / "parity.png"
    if picture.is_file():
        tracker.record(lambda: tracker.run.log({"plots/ensemble_parity": _image(picture)}))
    checkpoint = tracker.folder / "checkpoints" / "last.ckpt"
    if checkpoint.is_file():
        known = {part: results[part] for part in ("val", "test")}
        tracker.record(
            lambda: tracker.run.log_artifact(
                model_artifact(load_checkpoint(checkpoint), tracker.folder, ensemble=known)
            )
        )


def _image(file: Path) -> Any:
    import wandb

    return wandb.Image(str(file))
