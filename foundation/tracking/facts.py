"""What is recorded with a run besides its configuration: code, data, model."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import foundation
from datamodules.datamodule import CrystalDataModule
from datamodules.store import CrystalStore
from foundation.training.module import MultiTaskModule


def recorded_config(config: Mapping[str, Any], module: MultiTaskModule, data: CrystalDataModule) -> dict[str, Any]:
    """The configuration of a run and what it stands on, as plain values; neither code nor data are among them.

    Args:
        config: The configuration, as config.yaml holds it.
        module: The module that trains, with its card.
        data: Its data.
    """
    card = module.card
    facts = {
        **config,
        "git": git_states(),
        "store": store_facts(data.store),
        "split": card["data"]["split"],
        "labels": card["data"]["labels"],
        "model": {
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "trainable": sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad),
            "frozen": [stage for stage, rate in card["rates"].items() if rate == 0],
        },
        "run": card["run"],
        "started_from": card["pretrained"],
        "versions": card["versions"],
    }
    plain: dict[str, Any] = json.loads(json.dumps(facts, default=str))
    return plain


def store_facts(store: CrystalStore) -> dict[str, Any]:
    """Which store it is and what is in it: content hash, counts, units, sources."""
    manifest = store.manifest
    return {
        "path": str(store.path),
        **{key: manifest.get(key) for key in ("name", "content_hash", "schema_version", "counts", "sources")},
        "units": {name: prop.unit for name, prop in store.properties.items()},
    }


def git_states() -> dict[str, Any]:
    """Commit and cleanliness of this program, where it runs from a checkout, and of the folder one works in."""
    code = Path(foundation.__file__)
    # Installed packages may lie inside somebody else's checkout, untracked there.
    own = _git(code.parent, "ls-files", "--error-unmatch", code.name) is not None
    return {"program": git_state(code.parent) if own else None, "folder": git_state(Path.cwd())}


def git_state(place: Path) -> dict[str, Any] | None:
    """Commit of the checkout that a folder belongs to, and whether tracked files differ from it.

    None where there is no checkout or no git.
    """
    commit = _git(place, "rev-parse", "HEAD")
    if commit is None:
        return None
    changed = _git(place, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit, "dirty": None if changed is None else bool(changed)}


def _git(place: Path, *words: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(place), *words],
            env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},  # reading must not write an index
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None
