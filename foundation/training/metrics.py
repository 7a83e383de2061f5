"""How good predictions of one property are, in its physical unit."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, MetricCollection, R2Score, SumMetric
from torchmetrics.classification import BinaryAccuracy, BinaryAUROC, BinaryF1Score


class PropertyMetrics(nn.Module):
    """Metrics of one property, over the labels it has.

    Args:
        classifier: Whether predictions are probabilities of class 1.
        distributed: Whether the processes of a distributed run take in parts of one set.
    """

    def __init__(self, classifier: bool = False, distributed: bool = True) -> None:
        super().__init__()
        self.classifier = classifier
        sync: dict[str, Any] = {"sync_on_compute": distributed}
        self.metrics = MetricCollection(
            {"accuracy": BinaryAccuracy(**sync), "auroc": BinaryAUROC(**sync), "f1": BinaryF1Score(**sync)}
            if classifier
            else {
                "mae": MeanAbsoluteError(**sync),
                "rmse": MeanSquaredError(squared=False, **sync),
                "r2": R2Score(**sync),
            },
            compute_groups=False,
        )
        # A metric, not a buffer: buffers are swapped with those of the averaged weights around validation.
        self.num_labels = SumMetric(**sync)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Take in [B] predictions and [B] targets, NaN where there is none."""
        known = ~torch.isnan(target)
        self.num_labels.update(known.sum())
        if bool(known.any()):
            goal = target[known]
            self.metrics.update(predicted[known], goal.long() if self.classifier else goal)

    def compute(self) -> dict[str, float]:
        """The metrics; empty where there was no label, without r2 where there were fewer than two."""
        with warnings.catch_warnings():
            # A process may hold no label of a property while others do; torchmetrics warns of each.
            warnings.simplefilter("ignore", UserWarning)
            num_labels = int(self.num_labels.compute())
            if num_labels == 0:
                return {}
            names = [str(name) for name in self.metrics if not (name == "r2" and num_labels < 2)]
            return {name: float(self.metrics[name].compute()) for name in names}

    def reset(self) -> None:
        """Forget everything."""
        self.num_labels.reset()
        self.metrics.reset()
