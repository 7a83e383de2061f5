"""From a store to batches: labels, split, exclusion, graphs and loaders."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import lightning
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from datamodules.batching import CrystalBatch, GraphArrays
from datamodules.blocks import blocks
from datamodules.dealing import Work, edge_counts
from datamodules.errors import InputError
from datamodules.exclusion import excluded_rows
from datamodules.graph import NeighborRecipe
from datamodules.graph_cache import cached_graphs
from datamodules.known import KnownFeatures
from datamodules.loading import make_loader
from datamodules.mapped_labels import labels_key, mapped_labels
from datamodules.mapped_split import mapped_split
from datamodules.memory import give_back_memory
from datamodules.properties import DERIVED, WEIGHT, Property
from datamodules.replay import Rehearsal, RehearsingLoader
from datamodules.sampling import BatchedRows, temperature_weights
from datamodules.shaped import ShapedLabels
from datamodules.splits import Split, split_by_formula, split_from_lists
from datamodules.store import CrystalStore

Rows = npt.NDArray[np.int64]
Part = Literal["train", "val", "test"]


class CrystalDataModule(lightning.LightningDataModule):
    """Crystals of a store with the labels of some of its properties.

    Args:
        store: Folder of the store, made by ``foundation data import``.
        properties: Names, or one string of names separated by commas; None takes those of the heads.
        splits: JSON file of id lists; without it crystals are split at random, grouped by formula.
        trial: Which trial of the lists.
        train_size: Crystals to fit and validate on together; None takes all there are.
        val_share: Share that validates: of all crystals at random, or of a list its last part; 0 for none.
        test_share: Share of the random split that tests.
        exclude: Stores, structure files, files of id lists or folders of these, whose crystals do not train.
        exclude_by: Whether the same "formula" or the same "structure" excludes.
        batch_size: Crystals per process and step, in the mean: processes get crystals of equal work, not as many.
        max_edges: Edges per process and step: a batch of large cells takes fewer crystals, so that memory is bounded.
        temperature: Draw crystals so that property p is visited in proportion to n_p^(1/temperature); None
            visits every crystal once an epoch.
        seed: Seed of the split and of the order of batches.
    """

    def __init__(
        self,
        store: str,
        properties: list[str] | str | None = None,
        splits: str | None = None,
        trial: str = "trial1",
        train_size: int | None = None,
        val_share: float = 0.1,
        test_share: float = 0.1,
        exclude: list[str] | str | None = None,
        exclude_by: Literal["formula", "structure"] = "formula",
        batch_size: int = 32,
        max_edges: int = 150_000,
        temperature: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.config: dict[str, Any] = {
            name: value for name, value in locals().items() if name not in ("self", "__class__")
        }
        self.batch_size = batch_size
        self.max_edges = max_edges
        self.temperature = temperature
        self.seed = seed
        self.order_seed = seed  # members of an ensemble share the split, not the order of batches
        self.store = CrystalStore.open(Path(store))
        self.names: list[str] = []
        self.recipe = NeighborRecipe()
        self.rehearsal: Rehearsal | None = None  # of another data set, among the batches that train
        self.known: KnownFeatures | None = None  # of atoms, where a part of the encoder is frozen
        self._split: Split | None = None
        self._graphs: GraphArrays | None = None
        self._labels: Tensor | None = None
        self.shaped: dict[str, ShapedLabels] = {}  # of chosen properties with more than one number per crystal

    def choose(self, names: Sequence[str], recipe: NeighborRecipe) -> None:
        """Say which properties label the crystals and by which recipe their graphs are made.

        Raises:
            InputError: If the store lacks one of the properties, or it cannot be split as asked.
        """
        for name in names:
            self.property_of(name)
        self.names, self.recipe = list(names), recipe
        self.shaped = self._read_shaped()
        self._labels = mapped_labels(self.store, self.names, self._read_labels)
        self._split = self._make_split()
        self._graphs = None
        give_back_memory()  # what reading columns and splitting took, several times what is kept

    def has(self, name: str) -> bool:
        """Whether the store has this property, or one that it follows from."""
        return name in self.store.properties or (name in DERIVED and DERIVED[name].source in self.store.properties)

    def property_of(self, name: str) -> Property:
        """The property of this name in the store.

        Raises:
            InputError: If the store does not have it.
        """
        if self.has(name):
            return self.store.properties[name] if name in self.store.properties else DERIVED[name].property
        have = ", ".join(self.store.properties)
        raise InputError(f"store {self.store.path} has no property {name!r}; it has {have}")

    @property
    def split(self) -> Split:
        """Rows to train, validate and test on."""
        assert self._split is not None, "choose() comes first"
        return self._split

    @property
    def labels(self) -> Tensor:
        """[M, P] labels of all rows in physical units, NaN where missing; of ``shaped`` ones, 1 where there is one."""
        assert self._labels is not None, "choose() comes first"
        return self._labels

    @property
    def graphs(self) -> GraphArrays:
        """Graphs of the whole store, from its cache."""
        if self._graphs is None:
            self._graphs = cached_graphs(self.store, self.recipe)
        return self._graphs

    def training_labels(self, name: str) -> tuple[Rows, Tensor]:
        """Rows of the training part that carry a label, and their ``targets``."""
        column = self.labels[:, self.names.index(name)]
        rows = self.split.train[~torch.isnan(column[torch.from_numpy(self.split.train)]).numpy()]
        return rows, self.targets(name, rows)

    def targets(self, name: str, rows: Rows) -> Tensor:
        """Labels of some rows: [K], or [K, ...] of a tensor or spectrum, [N, ...] of atoms; float64, NaN where none."""
        column = self.labels[torch.from_numpy(rows), self.names.index(name)].double()
        return self.shaped[name].gather(rows, ~torch.isnan(column).numpy()) if name in self.shaped else column

    def with_split(self, split: Split) -> CrystalDataModule:
        """The same crystals, graphs and labels under another split."""
        other = copy.copy(self)
        other._graphs, other._split = self.graphs, split
        other.known = other.rehearsal = other.trainer = None
        return other

    def leave_out(self, formulas: set[str]) -> None:
        """Keep crystals of these reduced formulas from training, as those that test another property.

        Raises:
            InputError: If no crystal is left to train on.
        """
        kept = ~self.store.has_formula(formulas)[self.split.train]
        if not kept.any():
            raise InputError(f"store {self.store.path}: no crystal is left to train {', '.join(self.names)} on")
        self._split = replace(self.split, train=self.split.train[kept])

    @property
    def labelled(self) -> npt.NDArray[np.bool_]:
        """[M, P] where there is a label."""
        known: npt.NDArray[np.bool_] = ~torch.isnan(self.labels).numpy()
        return known

    def discount(self, part: Part, labels: npt.NDArray[np.bool_]) -> None:
        """Say which labels of a part do not count; a crystal without any other leaves the part.

        Args:
            part: The part.
            labels: [K, P] of its crystals.
        """
        rows = self.split.rows(part)
        counted = self.labels.clone()
        counted[torch.from_numpy(rows)] = counted[torch.from_numpy(rows)].masked_fill(
            torch.from_numpy(labels), torch.nan
        )
        self._labels = counted
        kept: dict[str, Any] = {part: rows[self.labelled[rows].any(axis=1)]}
        self._split = replace(self.split, **kept)

    def train_dataloader(self) -> DataLoader[CrystalBatch] | RehearsingLoader:
        """Shuffled batches of the training part."""
        weights = None
        if self.temperature is not None:
            weights = temperature_weights(self.labels.numpy(), self.split.train, self.temperature)
        loader = self._loader(self.split.train, shuffle=True, weights=weights)
        give_back_memory()  # what weights and costs of all rows took
        return loader if self.rehearsal is None else self.rehearsal.among(loader)

    def val_dataloader(self) -> DataLoader[CrystalBatch]:
        """Batches of the validation part, shared among processes."""
        return self._loader(self.split.val)

    def test_dataloader(self) -> DataLoader[CrystalBatch]:
        """Batches of the test part, shared among processes."""
        return self._loader(self.split.test)

    def loader(self, part: str) -> DataLoader[CrystalBatch]:
        """All batches of "train", "val", "test" or "all", in order, for one process that evaluates alone."""
        return self._loader(self.split.rows(part), distributed=False)

    def transfer_batch_to_device(self, batch: CrystalBatch, device: torch.device, dataloader_idx: int) -> CrystalBatch:
        """Copy without waiting for it: the copy is in order with what the GPU does next."""
        moved: CrystalBatch = batch.to(device, non_blocking=True)
        return moved

    def _loader(self, rows: Rows, **order: Any) -> DataLoader[CrystalBatch]:
        costs = edge_counts(self.graphs, rows)
        sampler = BatchedRows(
            rows, self.batch_size, seed=self.order_seed, costs=costs, max_cost=self.max_edges, **order
        )
        sampler.work = Work(self.graphs, self.max_edges)
        known = self.known if self.known is not None and self.known.covers(rows) else None
        shaped = {name: (self.names.index(name.removesuffix(WEIGHT)), labels) for name, labels in self.shaped.items()}
        return make_loader(self.graphs, self.labels, sampler, known, shaped)

    def _read_shaped(self) -> dict[str, ShapedLabels]:
        shaped = {}
        for name in self.names:
            if not self.property_of(name).is_single:
                shaped[name] = self.store.shaped(name)
                if name + WEIGHT in self.store.properties:
                    values = self.store.labels([name + WEIGHT])[:, 0]
                    rows = np.arange(len(values))
                    shaped[name + WEIGHT] = ShapedLabels(rows, np.ones_like(rows), values)
        return shaped

    def _read_labels(self, start: int, block: CrystalStore) -> npt.NDArray[np.float64]:
        """[K, P] labels of a block of the store that begins at a row."""
        columns = []
        for name in self.names:
            if name in self.shaped:
                columns.append(self.shaped[name].present(slice(start, start + len(block))))
            elif name in self.store.properties:
                columns.append(block.labels([name])[:, 0])
            else:
                columns.append(DERIVED[name].of(block.labels([DERIVED[name].source])[:, 0]))
        return np.stack(columns, axis=1)

    def _make_split(self) -> Split:
        config = self.config
        if config["splits"] is not None:
            split = split_from_lists(
                Path(config["splits"]),
                config["trial"],
                config["train_size"],
                self.store.source_ids,
                self._has_label(),
                config["val_share"],
            )
        else:
            how = (self.seed, config["train_size"], (config["val_share"], config["test_share"]))
            split = mapped_split(
                self.store,
                [labels_key(self.names), *how],
                lambda: split_by_formula(self.store.formula_codes()[0], self._has_label(), *how),
            )
        split = self._without_excluded(split)
        if not len(split.train):
            raise InputError(f"store {self.store.path}: no crystal is left to train {', '.join(self.names)} on")
        return split

    def _has_label(self) -> npt.NDArray[np.bool_]:
        """[M] whether a crystal has any label."""
        labels, found = self.labels.numpy(), np.empty(len(self.labels), dtype=bool)
        for block in blocks(len(found)):
            found[block] = ~np.isnan(labels[block]).all(axis=1)
        return found

    def _without_excluded(self, split: Split) -> Split:
        places = self.config["exclude"]
        if not places:
            return split
        places = [places] if isinstance(places, str) else places
        by = self.config["exclude_by"]
        rows = np.concatenate([split.train, split.val])
        out_train, out_val = np.split(excluded_rows(self.store, rows, places, by), [len(split.train)])
        note = (
            f"left out {out_train.sum()} of {len(split.train)} training and {out_val.sum()} of {len(split.val)} "
            f"validation crystals whose {by} stands in {', '.join(places)}"
        )
        return Split(split.train[~out_train], split.val[~out_val], split.test, split.how, [*split.notes, note])
