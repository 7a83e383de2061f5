"""Predictions of one model or an ensemble, and how good they are."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from tqdm import tqdm

from datamodules.batching import CrystalBatch, GraphArrays
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.sampling import starts_by_cost
from foundation.derived import quantities
from foundation.largest_errors import crystal_errors
from foundation.streaming import in_order
from foundation.training.metrics import PropertyMetrics
from foundation.training.module import MultiTaskModule
from heads import Head, TensorHead
from heads.shaped import ShapedHead, has_label

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# Where a batch is fastest. On a CPU messages are made a few edges at a time, and what larger batches gain is that
# operations on atoms are worth their start; a GPU has to be filled.
EDGES_PER_BATCH = {"cpu": 32_000, "cuda": 200_000}


SPREAD = " spread"  # behind the column of a property: the spread over the members


class Ensemble:
    """Models of the same properties, or a single one.

    Args:
        models: The members, in evaluation mode.

    Raises:
        InputError: If they do not predict the same properties from the same graphs.
    """

    def __init__(self, models: Sequence[MultiTaskModule]) -> None:
        first = models[0]
        for model in models[1:]:
            if model.names != first.names or model.encoder.recipe != first.encoder.recipe:
                raise InputError("the members of the ensemble do not predict the same properties from the same graphs")
        self.models = list(models)
        self.names = first.names
        self.recipe = first.encoder.recipe
        self.heads = dict(first.named_heads())
        self.properties = {name: head.property for name, head in self.heads.items()}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __len__(self) -> int:
        return len(self.models)

    def predict(self, batches: Iterable[CrystalBatch], total: int | None = None) -> dict[str, Values]:
        """Predict every crystal of the batches.

        Args:
            batches: Batches of crystals.
            total: How many batches there are, for the progress bar.

        Returns:
            Property name -> [K, M, ...], a row per crystal (of labels of atoms, per atom) and a column per member, in
            physical units.
        """
        parts = []
        with self.threads() as (pool, count):
            results = in_order(pool, self._predict, batches, ahead=count + 1)
            for part in tqdm(results, total=total, desc="predict", unit=" batches", disable=None, delay=2):
                parts.append(part)
        empty = np.zeros((0, len(self.models)))
        return {name: np.concatenate([part[name] for part in parts]) if parts else empty for name in self.names}

    def predict_graphs(self, graphs: GraphArrays, rows: Rows) -> dict[str, Any]:
        """Predict some of many crystals in batches of the best size, with crystals of like size together.

        Args:
            graphs: The crystals.
            rows: [K] which of them.

        Returns:
            Property name -> [K, M, ...], a row per crystal and a column per member, in physical units; of labels of
            atoms a list of K [N, M, ...].
        """
        self._settle()
        num_edges = graphs.num_edges[rows]
        order = np.argsort(num_edges, kind="stable")
        found: dict[str, list[Values]] = {name: [np.zeros(0)] * len(rows) for name in self.names}
        for places in cut_by_cost(order, num_edges[order], EDGES_PER_BATCH[self.device.type]):
            batch = graphs.gather(rows[places])
            stops = np.cumsum(batch.num_atoms.numpy())[:-1]
            for name, part in self._predict(batch).items():
                values = np.split(part, stops) if self.properties[name].level == "atom" else part
                for place, value in zip(places.tolist(), values, strict=True):
                    found[name][place] = value
        atoms = {name for name in self.names if self.properties[name].level == "atom"}
        empty = np.zeros((0, len(self.models)))
        return {name: part if name in atoms else np.stack(part) if part else empty for name, part in found.items()}

    @contextmanager
    def threads(self) -> Iterator[tuple[Executor, int]]:
        """As many threads as torch may use, or one for a GPU, and their number; each computes batches of its own.

        Small batches side by side, each in the cache of its core, are faster than one batch that all cores share.
        """
        allowed = torch.get_num_threads()
        count = allowed if self.device.type == "cpu" else 1
        self._settle()
        pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(allowed // count,))
        try:
            yield pool, count
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(allowed)

    def _settle(self) -> None:
        """Put the models where they compute: training leaves them on the CPU."""
        for model in self.models:
            model.to(self.device).eval()

    def _predict(self, batch: CrystalBatch) -> dict[str, Values]:
        with torch.inference_mode():
            batch = batch.to(self.device)
            first, *others = [model(batch) for model in self.models]
            stacked = {}
            for name, head in self.heads.items():
                # As the first member has it: those that learned either sign of a tensor would cancel in the mean.
                rest = [head.comparable(first[name], output[name], batch) for output in others]
                stacked[name] = torch.stack([first[name], *rest], dim=1)
            return {name: values.double().cpu().numpy() for name, values in stacked.items()}


def cut_by_cost(rows: Rows, costs: Rows, limit: int) -> list[Rows]:
    """Cut rows into batches that cost no more than the limit, unless a single row does."""
    return np.split(rows, starts_by_cost(costs, limit)[1:]) if len(rows) else []


class Evaluation(NamedTuple):
    """How good the predictions of one part of the data are.

    Attributes:
        metrics: Property name -> its unit, counts and metrics in physical units.
        pairs: Property name -> [K, 2] the targets and predictions behind them, number by number.
        errors: Property name -> [B, 3] what ``crystal_errors`` says of each crystal.
    """

    metrics: dict[str, Any]
    pairs: dict[str, Values]
    errors: dict[str, Values]


def evaluate(
    ensemble: Ensemble,
    data: CrystalDataModule,
    part: str,
    watched: Callable[[Iterable[CrystalBatch]], Iterable[CrystalBatch]] = iter,
) -> Evaluation:
    """Metrics of every property on one part of the data, beside what one would say without a model.

    Args:
        ensemble: The model.
        data: Its data, with the same properties chosen.
        part: "train", "val", "test" or "all".
        watched: Hands on the batches, and may break them off.
    """
    rows = data.split.rows(part)
    loader = data.loader(part)
    predicted = ensemble.predict(watched(loader), total=len(loader))
    batch = data.graphs.gather_atoms(rows)
    results: dict[str, Any] = {}
    pairs: dict[str, Values] = {}
    errors: dict[str, Values] = {}
    for index, name in enumerate(data.names):
        head = ensemble.heads[name]
        mean = torch.from_numpy(predicted[name].mean(axis=1))
        target = data.targets(name, rows)
        target = head.comparable(mean, target, batch) if len(rows) else target
        known = has_label(target)
        result: dict[str, Any] = {
            "unit": data.property_of(name).unit,
            "count": int((~torch.isnan(data.labels[torch.from_numpy(rows), index])).sum()),
            "crystals": len(rows),
            "members": len(ensemble),
            **_metrics(head, mean, target),
        }
        if known.any():
            result |= without_model(head, data, batch, target)
            result |= derived_errors(head, mean[known], target[known])
            if len(ensemble) > 1:
                spread = predicted[name][known.numpy()].std(axis=1, ddof=1)
                result["spread"] = float(spread.mean())
            errors[name] = crystal_errors(head, mean, target, batch)
        results[name] = result
        if mean.shape == target.shape:  # all but probabilities of several classes
            pairs[name] = torch.stack([target[known].flatten(), mean[known].flatten()], dim=1).numpy()
    return Evaluation(results, pairs, errors)


def without_model(head: Head, data: CrystalDataModule, batch: CrystalBatch, target: Tensor) -> dict[str, float]:
    """How good a guess from the training labels alone is: their median, mean, or the mean of each element.

    Args:
        head: What predicts the property.
        data: The data.
        batch: The crystals that judge, without edges.
        target: Their targets, NaN where missing.
    """
    rows, labels = data.training_labels(head.property.name)
    if isinstance(head, ShapedHead):
        guess = head.baseline(labels, data.graphs.gather_atoms(rows), batch)
        return {f"baseline_{name}": value for name, value in _metrics(head, guess, target).items()}
    known = target[~torch.isnan(target)]
    if head.is_classifier:
        return {"majority_accuracy": float((known == labels.mode().values).double().mean())}
    return {"median_predictor_mae": float((known - labels.median()).abs().mean())}


def derived_errors(head: Head, predicted: Tensor, target: Tensor) -> dict[str, Any]:
    """Mean absolute errors of what follows from a tensor, beside those of the median of the targets."""
    found = {}
    for quantity in quantities(head) if isinstance(head, TensorHead) else ():
        two = np.array([[quantity.of(value.numpy()) for value in values] for values in (predicted, target)]).T
        two = two[np.isfinite(two).all(axis=1)]
        if len(two):
            found[quantity.name] = {
                "unit": quantity.unit,
                "count": len(two),
                "mae": float(np.abs(two[:, 0] - two[:, 1]).mean()),
                "median_mae": float(np.abs(two[:, 1] - np.median(two[:, 1])).mean()),
            }
    return {"derived": found} if found else {}


def _metrics(head: Head, predicted: Tensor, target: Tensor) -> dict[str, float]:
    metrics = PropertyMetrics(head, distributed=False)
    metrics.update(predicted, target)
    return metrics.compute()
