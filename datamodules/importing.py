"""Import: records of several sources become one store, the same crystal one row with several labels."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datamodules.crystals import Crystal
from datamodules.errors import InputError
from datamodules.framed import GRID, Asymmetric, Prepared, prepare_label
from datamodules.labels import LabelSchema, odd
from datamodules.matching import group_same
from datamodules.merging import Merged, crystal_of, merge
from datamodules.properties import WEIGHT, Property, parse_property
from datamodules.readers import Label, Record, read_source, source_name
from datamodules.store_writer import RESERVED, check_target, write_store
from datamodules.validity import problem_of

DOUBTFUL = 10  # labels of one source that contradict one another before it is said


@dataclass
class ImportResult:
    """What an import did.

    Attributes:
        manifest: The store's manifest; None if no record succeeded and nothing was written.
        rejected: Rows (source, index, id, reason, detail) of refused records and labels.
        warnings: Lines for the user: about missing units, and about records that were perhaps merged wrongly.
    """

    manifest: dict[str, Any] | None
    rejected: list[tuple[Any, ...]]
    warnings: list[str]


@dataclass
class _Intake:
    """The records as they come in: what is kept, what is refused, and the counts."""

    schema: LabelSchema
    tolerance: float
    asymmetric: Asymmetric
    kept: list[Record] = field(default_factory=list)
    rejected: list[tuple[Any, ...]] = field(default_factory=list)
    read: int = 0
    dropped_labels: int = 0
    downweighted: int = 0

    def take(self, record: Record, maps: dict[str, str]) -> None:
        """Keep a record with its good labels, or list why it is refused."""
        self.read += 1
        labels = _renamed(record, maps)
        units = {maps.get(name, name): unit for name, unit in record.units.items()}
        for name in labels:
            self.schema.note_unit(record.source, name, units.get(name))
        problem = record.problem if record.crystal is None else problem_of(record.crystal)
        if problem is not None or record.crystal is None:
            self.refuse(record, problem or "unreadable", record.detail)
            return
        good: dict[str, Label] = {}
        bad: list[tuple[str, str]] = []
        for name, label in labels.items():
            if label is None or not _has_numbers(label) or _is_grid(name, labels):
                continue
            made = self._prepared(name, label, record.crystal, labels.get(name + GRID))
            reason = made.reason or self.schema.refuse(name, made.label, len(record.crystal))
            if reason is None:
                good[name] = made.label
                if self.asymmetric == "downweight" and self.schema.known(name) and isinstance(label, list):
                    good |= self._weight(record, name, made.weight)
            else:
                what = name if isinstance(label, list) else f"{name}={label}"
                bad.append((reason, f"{what} {made.detail}".rstrip()))
        if bad and not good:
            self.refuse(record, bad[0][0], "; ".join(detail for _, detail in bad) + "; no label is left")
            return
        for reason, detail in bad:
            self.drop_label(record, reason, detail)
        self.kept.append(Record(record.source, record.index, record.id, record.crystal, good))

    def drop_odd_labels(self) -> None:
        """List labels that differ in shape from the others of their property, where that is nowhere stated."""
        usual = self.schema.usual_shapes()
        kept, self.kept = self.kept, []
        for record in kept:
            bad = {
                name: found
                for name in usual.keys() & record.labels.keys()
                if (found := odd(*usual[name], record.labels[name], len(crystal_of(record))))
            }
            for name, (reason, detail) in bad.items():
                del record.labels[name]
                if record.labels:
                    self.drop_label(record, reason, f"{name} {detail}")
                else:
                    self.refuse(record, reason, f"{name} {detail}; no label is left")
            if record.labels or not bad:
                self.kept.append(record)

    def _prepared(self, name: str, label: Label, crystal: Crystal, grid: Label) -> Prepared:
        known = self.schema.known(name)
        if known is None or isinstance(label, str):
            return Prepared(label)
        return prepare_label(known, label, crystal, self.tolerance, self.asymmetric, grid)

    def _weight(self, record: Record, name: str, weight: float) -> dict[str, Label]:
        if not self.schema.known(name).formula:  # type: ignore[union-attr]
            return {}
        self.schema.note_unit(record.source, name + WEIGHT, "")
        self.schema.refuse(name + WEIGHT, weight, 0)
        self.downweighted += weight < 1
        return {name + WEIGHT: weight}

    def refuse(self, record: Record, reason: str, detail: str) -> None:
        """List a whole record as rejected."""
        self.rejected.append((record.source, record.index, record.id, reason, detail))

    def drop_label(self, record: Record, reason: str, detail: str) -> None:
        """List one label as rejected; the record stays."""
        self.dropped_labels += 1
        self.rejected.append((record.source, record.index, record.id, reason, f"label {detail}; the crystal is kept"))


def import_store(
    sources: Sequence[str | Path],
    out: str | Path,
    properties: Sequence[str] = (),
    structure_column: str | None = None,
    maps: Sequence[str] = (),
    overwrite: bool = False,
    workers: int = 2,
    tolerance: float = 0.05,
    asymmetric: Asymmetric = "reject",
    separate: bool = False,
) -> ImportResult:
    """Read sources and write one store.

    Args:
        sources: Files and folders, in the order in which their labels take precedence.
        out: The store to write.
        properties: Declarations, see ``datamodules.properties.parse_property``.
        structure_column: Where tables keep their structures; found by itself if None.
        maps: Renamings ``old=new`` of labels.
        overwrite: Replace a store that stands at ``out``.
        workers: Processes for the space groups.
        tolerance: How far a tensor may be from what its crystal's symmetry allows, relative to its largest component.
        asymmetric: Whether one that is further is rejected, counts less in training, or is kept unchecked.
        separate: Whether every record is a crystal of its own.

    Raises:
        InputError: If a path, declaration, renaming or unit is wrong; nothing is written then.
    """
    check_target(Path(out), overwrite)
    renames = _parse_maps(maps)
    declared = [parse_property(text) for text in properties]
    paths = _check_sources(sources)
    intake = _Intake(LabelSchema(declared), tolerance, asymmetric)
    old_names = _take_all(intake, paths, structure_column, renames)
    intake.drop_odd_labels()
    _check_names(renames, old_names, declared, intake.schema.seen)
    if not intake.kept:
        return ImportResult(None, intake.rejected, _warnings(intake.schema.warning()))
    if separate:
        groups = np.arange(len(intake.kept))
    else:
        groups = group_same([crystal_of(record) for record in intake.kept], workers=workers)
    merged = merge(intake.kept, groups, intake.schema.framed())
    for record, detail in merged.other_frames:
        intake.drop_label(record, "other_frame", detail)
    manifest = write_store(
        out,
        merged.crystals,
        merged.labels,
        [prop for prop in intake.schema.properties() if prop.name in merged.labels],
        source_ids=merged.source_ids,
        extra={"counts": _counts(intake, merged), "sources": [_describe(name, path) for name, path in paths.items()]},
        tables={
            "rejected.csv": [(*row, paths[row[0]]) for row in intake.rejected],
            "conflicts.csv": merged.conflicts,
        },
        overwrite=overwrite,
    )
    return ImportResult(manifest, intake.rejected, _warnings(intake.schema.warning(), _doubtful(merged)))


def _take_all(
    intake: _Intake, paths: Mapping[str, Path], structure_column: str | None, renames: dict[str, str]
) -> set[str]:
    """Take in every record; the names that labels have in the sources.

    Raises:
        InputError: If a source holds no record.
    """
    old_names: set[str] = set()
    for name, path in paths.items():
        before = intake.read
        for record in tqdm(read_source(path, structure_column), desc=f"reading {name}", unit=" records", disable=None):
            old_names |= record.labels.keys()
            intake.take(record, renames)
        if intake.read == before:
            raise InputError(f"{path}: no records in it")
    return old_names


def _warnings(*lines: str | None) -> list[str]:
    return [line for line in lines if line is not None]


def _doubtful(merged: Merged) -> str | None:
    """A line where records of one and the same source were merged that mostly disagree."""
    within = sum(owner.startswith(f"{source}:") for source, *_, owner in merged.conflicts)
    if within < DOUBTFUL or 2 * within < merged.duplicates:
        return None
    return (
        f"warning: {within} labels of records of one source taken for the same crystal differ (conflicts.csv); "
        "where they are different ones, as slabs and defects are, import with --no-merge"
    )


def _check_sources(sources: Sequence[str | Path]) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in map(Path, sources):
        if not path.exists():
            raise InputError(f"{path}: no such file or folder")
        name = source_name(path)
        if name in paths:
            raise InputError(f"{path}: a source called {name!r} is given twice ({paths[name]}); rename one of them")
        paths[name] = path
    return paths


def _check_names(renames: dict[str, str], old: set[str], declared: Sequence[Property], seen: set[str]) -> None:
    for name in renames.keys() - old:
        raise InputError(f"--map: no source has a label {name!r}; they have {', '.join(sorted(old)) or 'none'}")
    for name in [prop.name for prop in declared if prop.name not in seen]:
        raise InputError(f"--property: no source has a label {name!r}; they have {', '.join(sorted(seen)) or 'none'}")


def _parse_maps(maps: Sequence[str]) -> dict[str, str]:
    renames: dict[str, str] = {}
    for text in maps:
        old, _, new = text.partition("=")
        if not old or not new:
            raise InputError(f"--map {text!r}: write old=new, such as value=G_VRH")
        renames[old] = new
    return renames


def _renamed(record: Record, maps: dict[str, str]) -> dict[str, Label]:
    labels = {maps.get(name, name): label for name, label in record.labels.items()}
    if len(labels) < len(record.labels):
        raise InputError(f"--map: two labels of record {record.id} in source {record.source} get the same name")
    for name in labels.keys() & set(RESERVED):
        raise InputError(f"source {record.source}: the name {name!r} is taken; rename it with --map {name}=new")
    return labels


def _is_grid(name: str, labels: dict[str, Label]) -> bool:
    return name.endswith(GRID) and name.removesuffix(GRID) in labels


def _has_numbers(label: Label) -> bool:
    return any(_has_numbers(item) for item in label) if isinstance(label, list) else label is not None


def _counts(intake: _Intake, merged: Merged) -> dict[str, int]:
    return {
        "records": intake.read,
        "merged": len(intake.kept) - len(merged.crystals),
        "rejected": intake.read - len(intake.kept),
        "dropped_labels": intake.dropped_labels,
        **({"downweighted": intake.downweighted} if intake.downweighted else {}),
        "duplicates": merged.duplicates,
        "conflicts": len(merged.conflicts),
    }


def _describe(name: str, path: Path) -> dict[str, Any]:
    files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
    digest, size = hashlib.sha256(), 0
    for file in files:
        content = file.read_bytes()
        digest.update(content)
        size += len(content)
    return {"name": name, "file": path.name, "files": len(files), "bytes": size, "sha256": digest.hexdigest()}
