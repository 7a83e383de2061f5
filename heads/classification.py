"""Classes: metal or not, or one of several, such as a crystal's magnetic order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import (
    BinaryAccuracy,
    BinaryAUROC,
    BinaryCalibrationError,
    BinaryF1Score,
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassF1Score,
)

from datamodules.errors import InputError
from datamodules.properties import Property
from heads.base import Head, invariant_slice
from heads.pooling import MeanAndAttention

# Temperatures tried for calibrated probabilities.
_TEMPERATURES = torch.logspace(-1, 1, 201, dtype=torch.float64)


class ClassificationHead(Head):
    """The probability of each class.

    Args:
        irreps_in: Irreps of the atom features.
        property: What is predicted; its labels are 0 and 1, or 0 ... K - 1 where it has K classes.
        hidden: Channels of a hidden layer; 0 for a linear head.
        class_weights: What the loss of a label of each class weighs; "balanced" lets every class weigh the same in all.
            What that does to the probabilities is undone when predicting.
    """

    is_classifier: ClassVar[bool] = True
    prior: Tensor
    weights: Tensor
    temperature: Tensor

    def __init__(
        self,
        irreps_in: str,
        property: Property,
        hidden: int = 0,
        class_weights: list[float] | Literal["balanced"] | None = None,
    ) -> None:
        super().__init__(irreps_in, property)
        self.classes = property.classes or 2
        given = class_weights if isinstance(class_weights, list) else [1.0] * self.classes
        if len(given) != self.classes or min(given) <= 0:
            raise InputError(f"head {property.name}: class_weights: give {self.classes} positive numbers, or balanced")
        self.balanced = class_weights == "balanced"
        self.scalars = invariant_slice(self.irreps_in)
        channels = self.scalars.stop - self.scalars.start
        self.pool = MeanAndAttention(channels)
        channels *= 2
        out = self.classes if self.classes > 2 else 1
        layers: list[nn.Module] = [nn.Linear(channels, hidden), nn.SiLU()] if hidden else []
        self.network = nn.Sequential(*layers, nn.Linear(hidden or channels, out))
        self.register_buffer("prior", torch.zeros(()) if out == 1 else torch.zeros(out))
        self.register_buffer("weights", torch.tensor(given))
        self.register_buffer("temperature", torch.ones(()))

    @property
    def is_single(self) -> bool:
        """Whether a prediction is one number: the probability of class 1 of two."""
        return self.classes == 2

    def forward(self, features: Tensor, batch: Any) -> Tensor:
        """[N, irreps_in.dim] atom features -> [B] log-odds beside those of the training labels; [B, K] of K classes."""
        out: Tensor = self.network(self.pool(features[:, self.scalars], batch))
        return out[:, 0] if self.classes == 2 else out

    def predict(self, scaled: Tensor, batch: Any) -> Tensor:
        """[B] -> [B] probability of class 1; [B, K] -> [B, K] of every class."""
        if self.classes == 2:
            bias = torch.log(self.weights[1] / self.weights[0])
            return torch.sigmoid((scaled + self.prior - bias) / self.temperature)
        return torch.softmax((scaled + self.prior - torch.log(self.weights)) / self.temperature, dim=1)

    def loss(self, scaled: Tensor, target: Tensor, batch: Any) -> Tensor:
        """[B] or [B, K], [B] labels 0, 1, ... -> [B] cross entropy."""
        logits = scaled + self.prior
        if self.classes == 2:
            losses = nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none")
        else:
            losses = nn.functional.cross_entropy(logits, target.long(), reduction="none")
        return losses * self.weights[target.long()]

    def fit_scaler(self, target: Tensor, batch: Any) -> None:
        """Set the log-odds of the classes among [M] training labels, and weights that balance them.

        Raises:
            InputError: If a label is none of the classes.
        """
        if not bool(torch.isin(target, torch.arange(self.classes, dtype=target.dtype)).all()):
            wanted = "0 and 1" if self.classes == 2 else f"0 to {self.classes - 1}"
            raise InputError(f"property {self.property.name}: a ClassificationHead needs labels {wanted}")
        # One virtual label of each class keeps the odds finite.
        shares = (torch.bincount(target.long(), minlength=self.classes).double() + 1) / (len(target) + self.classes)
        if self.balanced:
            self.weights.copy_(1 / (shares * self.classes))
        weighted = torch.log(shares * self.weights)
        self.prior.copy_(weighted[1] - weighted[0] if self.classes == 2 else weighted - weighted.mean())

    def calibrate(self, predicted: Tensor, target: Tensor) -> bool:
        """Set the temperature that makes labels which did not train most likely.

        Args:
            predicted: [M] or [M, K] probabilities that are predicted for them now.
            target: [M] the labels.
        """
        probabilities = predicted if self.classes > 2 else torch.stack([1 - predicted, predicted], dim=1)
        logits = torch.log(probabilities.double().clamp(min=1e-12)) * float(self.temperature)
        losses = torch.stack(
            [nn.functional.cross_entropy(logits / temperature, target.long()) for temperature in _TEMPERATURES]
        )
        self.temperature.fill_(float(_TEMPERATURES[losses.argmin()]))
        return True

    def metrics(self, **sync: Any) -> Mapping[str, Metric]:
        """Accuracy, balanced accuracy, area under the ROC curve, F1 and the error of the probabilities."""
        if self.classes == 2:
            return {
                "accuracy": BinaryAccuracy(**sync),
                "balanced_accuracy": MulticlassAccuracy(2, average="macro", **sync),
                "auroc": BinaryAUROC(**sync),
                "f1": BinaryF1Score(**sync),
                "calibration_error": BinaryCalibrationError(**sync),
            }
        return {
            "accuracy": MulticlassAccuracy(self.classes, average="micro", **sync),
            "balanced_accuracy": MulticlassAccuracy(self.classes, average="macro", **sync),
            "auroc": MulticlassAUROC(self.classes, **sync),
            "f1": MulticlassF1Score(self.classes, **sync),
            "calibration_error": MulticlassCalibrationError(self.classes, **sync),
        }

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        # Checkpoints from before there were weights and temperatures carry none.
        state_dict.setdefault(f"{prefix}weights", torch.ones(self.classes))
        state_dict.setdefault(f"{prefix}temperature", torch.ones(()))
        super()._load_from_state_dict(state_dict, prefix, *args)
