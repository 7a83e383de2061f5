"""What a cell starts from: a checkpoint that was given, or an encoder that the study trains once and keeps."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodules.errors import InputError
from foundation.files import write_json
from foundation.study.config import StudyConfig, as_words
from foundation.study.folder import TargetFolder, file_digest
from foundation.study.locks import make_once

JOINT, WITHOUT_TARGET = "joint", "joint_without_target"
_SIZED = re.compile(r"(?P<base>[\w.-]+)(?:@(?P<size>[0-9]+)(?P<thousand>k?))?")


@dataclass(frozen=True)
class Given:
    """Checkpoints from the command line.

    Attributes:
        paths: As they were given; several are candidates of a strategy that chooses.
        properties: What their encoders have been trained on.
        digest: Of their contents.
    """

    paths: list[str]
    properties: list[str]
    digest: str


@dataclass(frozen=True)
class Trained:
    """A source that the study trains.

    Attributes:
        name: Its folder under ``sources``.
        outside: Whether its crystals are those of the files of pretraining, or of the folder of targets.
        properties: Those that have a head.
        size: Crystals to train, validate and test on; None for all.
    """

    name: str
    outside: bool
    properties: list[str]
    size: int | None


Source = Given | Trained


def given_source(paths: Sequence[str]) -> Given:
    """Look at checkpoints from the command line.

    Raises:
        InputError: If one is not there, is torn, or is an ensemble.
    """
    from foundation.checkpoint import find_members, load_checkpoint

    properties: list[str] = []
    digests: list[str] = []
    for path in paths:
        members = find_members(path)
        if len(members) > 1:
            raise InputError(f"--pretrained {path}: an ensemble; give one of its members, such as {members[0]}")
        properties += load_checkpoint(members[0]).spec.heads
        digests.append(file_digest(members[0] / "model.safetensors" if members[0].is_dir() else members[0]))
    return Given(list(paths), list(dict.fromkeys(properties)), " ".join(digests))


def parse_source(name: str, target: str, config: StudyConfig, folder: TargetFolder, given: dict[str, Given]) -> Source:
    """What a name on the source axis stands for.

    ``joint`` is the checkpoint that was given, else an encoder trained on the configured files of pretraining; where
    these are not there it is ``joint_without_target``, trained on every property of the folder but the target and what
    is the same quantity. Any property of the folder, or of the files of pretraining, is a source of its own. ``@1k``
    or ``@1000`` behind one of these is the same trained on that many crystals.

    Raises:
        InputError: If it stands for nothing.
    """
    if name in given:
        return given[name]
    match = _SIZED.fullmatch(name)
    base = match["base"] if match else name
    size = int(match["size"]) * (1000 if match["thousand"] else 1) if match and match["size"] else None
    suffix = name[len(base) :]
    files = _outside(config, folder)
    outside = bool(files) and all(file.is_file() for file in files)
    if base == JOINT and outside:
        return Trained(name, True, config.pretraining.properties, size)
    if base in (JOINT, WITHOUT_TARGET):
        others = [other for other in folder.targets if other not in config.same(target)]
        if not others:
            raise InputError(f"source {name}: {folder.path} holds no property but {target}; give --pretrained")
        return Trained(f"joint_without_{target}{suffix}", False, others, size)
    if base in folder.targets:
        return Trained(name, False, [base], size)
    if base in config.pretraining.properties and outside:
        return Trained(name, True, [base], size)
    known = ["none", *given, JOINT, WITHOUT_TARGET, *folder.targets]
    if outside:
        known += config.pretraining.properties
    raise InputError(f"--cells: no source {name!r}; sources are {', '.join(dict.fromkeys(known))}, by size as joint@1k")


def carried(source: Source, target: str, config: StudyConfig) -> list[str]:
    """Names of the target's own quantity among what a source was trained on: it is no source for this target."""
    return [name for name in source.properties if name in config.same(target)]


def identity(source: Source, config: StudyConfig, folder: TargetFolder) -> dict[str, Any]:
    """All that a source's weights depend on, as plain values."""
    if isinstance(source, Given):
        return {"given": source.digest}
    return {
        **_pool_job(source, config, folder),
        "properties": source.properties,
        "size": source.size,
        "excluded": [folder.digest(target) for target in folder.targets],
        "words": _options(source, config),
    }


def checkpoints(source: Source, config: StudyConfig, folder: TargetFolder, out: Path) -> list[str]:
    """Paths of the source's checkpoints; one that the study trains is trained where it is not there yet.

    Raises:
        Busy: If another process is training it.
        InputError: If it cannot be trained.
    """
    if isinstance(source, Given):
        return source.paths
    place = out / "sources" / source.name
    job = identity(source, config, folder)
    make_once(place / "model", job, lambda: _train(source, job, config, folder, out))
    return [str(place / "model")]


def _train(source: Trained, job: dict[str, Any], config: StudyConfig, folder: TargetFolder, out: Path) -> None:
    """Train a source, or go on with its training where that was cut off."""
    from datamodules.store import CrystalStore
    from datamodules.subset import write_subset
    from foundation.commands import pretrain

    place = out / "sources" / source.name
    last, begun = place / "checkpoints" / "last.ckpt", place / "begun.json"
    resumes = last.is_file() and begun.is_file() and json.loads(begun.read_text()) == json.loads(json.dumps(job))
    place.mkdir(parents=True, exist_ok=True)
    lists = [str(folder.splits(target)) for target in folder.targets]
    # Past the log of the cell that needs it: this may take hours.
    print(f"source {source.name}: training it once, see {place / 'log.txt'}", file=sys.__stderr__, flush=True)
    with (place / "log.txt").open("a") as log, redirect_stdout(log), redirect_stderr(log):
        words = ["--data.store", str(place / "store"), "--data.properties", ",".join(source.properties)]
        words += ["--wandb", "off", "--out", str(place), *_options(source, config)]
        if resumes:
            words += ["--resume", str(last)]
        else:
            pool = CrystalStore.open(_pool(source, config, folder, out))
            write_subset(pool, place / "store", source.properties, exclude=lists, size=source.size)
            shutil.rmtree(place / "checkpoints", ignore_errors=True)
            write_json(begun, job)
            words += ["--overwrite", "true", "--resume", "no"]
        pretrain.main(words)
    shutil.rmtree(place / "checkpoints", ignore_errors=True)  # `model` holds what is needed
    begun.unlink()


def _pool(source: Trained, config: StudyConfig, folder: TargetFolder, out: Path) -> Path:
    """The store that the source's crystals are chosen from."""
    declared = [] if source.outside else declarations(config, folder.targets)
    store = out / "stores" / ("pool-outside" if source.outside else "pool-folder")
    return make_store(store, _files(source, config, folder), declared, _pool_job(source, config, folder))


def _pool_job(source: Trained, config: StudyConfig, folder: TargetFolder) -> dict[str, Any]:
    return {
        "files": [file_digest(file) for file in _files(source, config, folder)],
        "declared": [] if source.outside else declarations(config, folder.targets),
    }


def _files(source: Trained, config: StudyConfig, folder: TargetFolder) -> list[Path]:
    if source.outside:
        return _outside(config, folder)
    return [folder.records(target) for target in folder.targets]


def _outside(config: StudyConfig, folder: TargetFolder) -> list[Path]:
    return [folder.path.resolve().parent / file for file in config.pretraining.files]


def make_store(store: Path, files: Sequence[Path], declared: Sequence[str], job: dict[str, Any]) -> Path:
    """Import files into a store, unless that was done already.

    Raises:
        Busy: If another process is doing it.
        InputError: If no record can be read.
    """
    from datamodules.importing import import_store

    def make() -> None:
        result = import_store(files, store, declared, overwrite=store.exists())
        if result.manifest is None:
            raise InputError(f"{files[0]}: no record of it can be read, the first: {result.rejected[0][3:]}")

    return make_once(store, job, make)


def declarations(config: StudyConfig, targets: Sequence[str]) -> list[str]:
    """Units of a folder's properties as an import declares them."""
    return [f"{target}:{config.properties[target]}" for target in targets if target in config.properties]


def _options(source: Trained, config: StudyConfig) -> list[str]:
    encoder = {f"encoder.{name}": value for name, value in config.encoder.items()}
    recipe = config.pretraining_recipe.options(source.size)
    return as_words({**encoder, **config.options, **recipe})
