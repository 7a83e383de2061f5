"""How good predictions of one property are, in its physical unit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection, SumMetric

from heads import Head
from heads.shaped import has_label


class PropertyMetrics(nn.Module):
    """Metrics of one property, over the labels it has.

    Args:
        head: What predicts it, and says which metrics suit.
        distributed: Whether the processes of a distributed run take in parts of one set.
    """

    def __init__(self, head: Head, distributed: bool = True) -> None:
        super().__init__()
        self.classifier = head.is_classifier
        sync: dict[str, Any] = {"sync_on_compute": distributed}
        self.metrics = MetricCollection(dict(head.metrics(**sync)), compute_groups=False)
        # A metric, not a buffer: buffers are swapped with those of the averaged weights around validation.
        self.num_labels = SumMetric(**sync)

    def update(self, predicted: Tensor, target: Tensor) -> None:
        """Take in predictions and [B, ...] or, of atoms, [N, ...] targets, NaN where there is none."""
        known = has_label(target)
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


class MeanLosses(Metric):
    """Mean loss of every property over its labels, in all processes; NaN where there was none.

    Args:
        names: The properties.
    """

    full_state_update = False
    sums: Tensor
    counts: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = names
        for state in ("sums", "counts"):
            self.add_state(state, torch.zeros(len(names)), dist_reduce_fx="sum")

    def update(self, sums: Tensor, counts: Tensor) -> None:
        """Take in [P] sums of losses and [P] numbers of labels."""
        self.sums += sums
        self.counts += counts

    def compute(self) -> dict[str, Tensor]:
        """Property name -> mean."""
        return dict(zip(self.names, self.sums / self.counts, strict=True))
