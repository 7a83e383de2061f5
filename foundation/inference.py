"""Predictions of one model or an ensemble, and how good they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from datamodules.batching import CrystalBatch, GraphArrays
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from datamodules.sampling import starts_by_cost
from foundation.streaming import in_order
from foundation.training.metrics import PropertyMetrics
from foundation.training.module import MultiTaskModule

Values = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# Where a batch is fastest. On a CPU larger ones gain nothing, and lose half their speed where their memory has to be
# mapped afresh every time; a GPU has to be filled.
EDGES_PER_BATCH = {"cpu": 8_000, "cuda": 200_000}


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
        heads = dict(first.named_heads())
        self.properties = {name: head.property for name, head in heads.items()}
        self.classifiers = {name for name, head in heads.items() if head.is_classifier}
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

    def __len__(self) -> int:
        return len(self.models)

    @property
    def columns(self) -> list[str]:
        """Columns of a table of predictions: one per property and, of several members, one for their spread."""
        names = [self.properties[name].column for name in self.names]
        return [column for name in names for column in ([name, name + SPREAD] if len(self) > 1 else [name])]

    def predict(self, batches: Iterable[CrystalBatch], total: int | None = None) -> dict[str, Values]:
        """Predict every crystal of the batches.

        Args:
            batches: Batches of crystals.
            total: How many batches there are, for the progress bar.

        Returns:
            Property name -> [K, M], a row per crystal and a column per member, in physical units.
        """
        parts = []
        with self.threads() as (pool, count):
            results = in_order(pool, self._predict, batches, ahead=count + 1)
            for part in tqdm(results, total=total, desc="predict", unit=" batches", disable=None, delay=2):
                parts.append(part)
        empty = np.zeros((0, len(self.models)))
        return {name: np.concatenate([empty, *(part[name] for part in parts)]) for name in self.names}

    def predict_graphs(self, graphs: GraphArrays, rows: Rows) -> dict[str, Values]:
        """Predict some of many crystals in batches of the best size, with crystals of like size together.

        Args:
            graphs: The crystals.
            rows: [K] which of them.

        Returns:
            Property name -> [K, M], a row per crystal and a column per member, in physical units.
        """
        num_edges = graphs.num_edges[rows]
        order = np.argsort(num_edges, kind="stable")
        values = {name: np.zeros((len(rows), len(self.models))) for name in self.names}
        for places in cut_by_cost(order, num_edges[order], EDGES_PER_BATCH[self.device.type]):
            for name, part in self._predict(graphs.gather(rows[places])).items():
                values[name][places] = part
        return values

    @contextmanager
    def threads(self) -> Iterator[tuple[Executor, int]]:
        """As many threads as torch may use, or one for a GPU, and their number; each computes batches of its own.

        Small batches side by side, each in the cache of its core, are faster than one batch that all cores share.
        """
        allowed = torch.get_num_threads()
        count = allowed if self.device.type == "cpu" else 1
        for model in self.models:
            model.to(self.device).eval()
        pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(allowed // count,))
        try:
            yield pool, count
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(allowed)

    def _predict(self, batch: CrystalBatch) -> dict[str, Values]:
        with torch.inference_mode():
            batch = batch.to(self.device)
            outputs = [model(batch) for model in self.models]
            stacked = {name: torch.stack([output[name] for output in outputs], dim=1) for name in self.names}
            return {name: values.double().cpu().numpy() for name, values in stacked.items()}


def cut_by_cost(rows: Rows, costs: Rows, limit: int) -> list[Rows]:
    """Cut rows into batches that cost no more than the limit, unless a single row does."""
    return np.split(rows, starts_by_cost(costs, limit)[1:]) if len(rows) else []


def evaluate(ensemble: Ensemble, data: CrystalDataModule, part: str) -> tuple[dict[str, Any], dict[str, Values]]:
    """Metrics of every property on one part of the data, beside the median predictor.

    Args:
        ensemble: The model.
        data: Its data, with the same properties chosen.
        part: "train", "val", "test" or "all".

    Returns:
        Property name -> its unit, counts and metrics in physical units, and property name -> [K, 2] the targets
        and predictions behind them.
    """
    rows = data.split.rows(part)
    loader = data.loader(part)
    predicted = ensemble.predict(loader, total=len(loader))
    results: dict[str, Any] = {}
    pairs: dict[str, Values] = {}
    for index, name in enumerate(data.names):
        target = data.labels[torch.from_numpy(rows), index].double().numpy()
        mean = predicted[name].mean(axis=1)
        known = ~np.isnan(target)
        metrics = PropertyMetrics(classifier=name in ensemble.classifiers, distributed=False)
        metrics.update(torch.from_numpy(mean), torch.from_numpy(target))
        result: dict[str, Any] = {
            "unit": data.property_of(name).unit,
            "count": int(known.sum()),
            "crystals": len(rows),
            "members": len(ensemble),
            **metrics.compute(),
        }
        if known.any():
            if name not in ensemble.classifiers:
                median = float(data.training_labels(name)[1].median())
                result["median_predictor_mae"] = float(np.abs(target[known] - median).mean())
            if len(ensemble) > 1:
                result["spread"] = float(predicted[name][known].std(axis=1, ddof=1).mean())
        results[name] = result
        pairs[name] = np.stack([target[known], mean[known]], axis=1)
    return results, pairs
