"""Artifacts and their lineage: store -> pretrained model -> adapted model.

A model's artifact is the folder in which a model is shared, so that `adapt --pretrained` takes what was downloaded.
It is made from a checkpoint's content alone: the run that trained it and a run that starts from it make the same
bytes, and the server, which knows versions by their content, ties the two together. So no run has to ask the server.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datamodules.datamodule import CrystalDataModule
from datamodules.store import CrystalStore
from datamodules.store_writer import MANIFEST
from foundation.checkpoint import Checkpoint, load_checkpoint, save_folder
from foundation.tracking.facts import store_facts
from foundation.tracking.identity import model_name
from foundation.tracking.logger import Tracker


def record_inputs(tracker: Tracker, card: Mapping[str, Any], data: CrystalDataModule) -> None:
    """Record the store, the store that is rehearsed and the checkpoint that a run starts from.

    Args:
        tracker: The run's record.
        card: The card of the model that trains.
        data: Its data.
    """
    parts = [data] if data.rehearsal is None else [data, data.rehearsal.data]
    for store in [part.store for part in parts]:
        tracker.record(lambda store=store: _use(tracker.run, store_artifact(store)))
    if card["pretrained"]:
        path = Path(card["pretrained"]["path"])
        tracker.record(lambda: _use(tracker.run, model_artifact(load_checkpoint(path), tracker.folder)))


def record_model(tracker: Tracker, checkpoint: Path, results: Mapping[str, Any]) -> None:
    """Record the model that a run has made.

    Args:
        tracker: The run's record.
        checkpoint: The model.
        results: What metrics.json holds.
    """
    known = {part: results[part] for part in ("val", "test")}
    tracker.record(
        lambda: tracker.run.log_artifact(model_artifact(load_checkpoint(checkpoint), tracker.folder, metrics=known))
    )


def store_artifact(store: CrystalStore) -> Any:
    """The manifest of a store, not its crystals."""
    import wandb

    name = f"store-{store.manifest.get('name') or store.path.name}"
    made = wandb.Artifact(
        _allowed(name), type="dataset", description="crystals and labels", metadata=store_facts(store)
    )
    made.add_file(str(store.path / MANIFEST), skip_cache=True)
    return made


def model_artifact(checkpoint: Checkpoint, folder: Path, **more: Any) -> Any:
    """A model as the folder in which it is shared.

    Args:
        checkpoint: The model.
        folder: The run's folder; the files wait there for their upload.
        more: Further entries of its metadata.
    """
    import wandb

    card = checkpoint.card
    name = _allowed(artifact_name(checkpoint))
    facts = {
        "units": {head: spec.property.unit for head, spec in checkpoint.spec.heads.items()},
        "encoder": checkpoint.spec.encoder_hash,
        "run": card.get("run"),
        "store": card["data"]["store"],
    }
    place = folder.resolve() / "wandb" / "artifacts" / name
    shutil.rmtree(place, ignore_errors=True)
    save_folder(place, checkpoint.build())
    made = wandb.Artifact(name, type="model", metadata={**facts, **more})
    # The files are there for this alone, so that no copies of them are needed.
    for file in sorted(place.iterdir()):
        made.add_file(str(file), policy="immutable", skip_cache=True)
    return made


def artifact_name(checkpoint: Checkpoint) -> str:
    """The name of a model's artifact: of the run that trained it, or of its folder where the card does not tell."""
    run = checkpoint.card.get("run")
    return f"{run['name']}-{run['id']}" if run else model_name(checkpoint.path)


def _use(run: Any, artifact: Any) -> None:
    """Record an artifact as an input of a run.

    What W&B has for this in public waits for the server, and refuses to work offline. The record below is the one it
    makes; an upload later draws the lineage from it.
    """
    run._log_artifact(artifact, is_user_created=True, use_after_commit=True)


def _allowed(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name)[:120]
