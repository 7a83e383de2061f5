"""Predictions of one model or an ensemble, and how good they are."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tqdm import tqdm

from datamodules.batching import CrystalBatch
from datamodules.datamodule import CrystalDataModule
from datamodules.errors import InputError
from foundation.training.metrics import PropertyMetrics
from foundation.training.module import MultiTaskModule

Values = npt.NDArray[np.float64]


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

    def predict(self, batches: Iterable[CrystalBatch], total: int | None = None) -> dict[str, Values]:
        """Predict every crystal of the batches.

        Args:
            batches: Batches of crystals.
            total: How many batches there are, for the progress bar.

        Returns:
            Property name -> [K, M], a row per crystal and a column per member, in physical units.
        """
        for model in self.models:
            model.to(self.device).eval()
        parts: dict[str, list[Values]] = {name: [] for name in self.names}
        with torch.inference_mode():
            for batch in tqdm(batches, total=total, desc="predict", unit=" batches", disable=None, delay=2):
                batch = batch.to(self.device)
                outputs = [model(batch) for model in self.models]
                for name in self.names:
                    stacked = torch.stack([output[name] for output in outputs], dim=1)
                    parts[name].append(stacked.double().cpu().numpy())
        return {name: np.concatenate(rows) if rows else np.zeros((0, len(self.models))) for name, rows in parts.items()}


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
