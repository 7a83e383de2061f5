"""How well a pretrained encoder suits a property, told from labels and frozen features, without training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import kendalltau
from sklearn.linear_model import BayesianRidge, RidgeCV

from datamodules.errors import InputError
from datamodules.properties import Property

Array = npt.NDArray[np.float64]

MIN_LABELS = 3
PENALTIES = np.logspace(-4, 4, 25)  # of the ridge, for features as standardized() makes them
CONSTANT = 1e-5  # a feature that spreads less than this, beside the one that spreads most, is rounding noise


@dataclass(frozen=True)
class Suitability:
    """How much features tell of a property.

    Attributes:
        score: LogME per label, in nats: higher is better, and the mean alone has about -1.42.
        loo_mae: Mean absolute error of a ridge regression that leaves out the crystal it predicts, in physical units.
    """

    score: float
    loo_mae: float


def suitability(features: Array, labels: Array, property: Property) -> Suitability:
    """Judge features by the labels of their crystals.

    Args:
        features: [K, D] features of K crystals, such as ``foundation.features.crystal_features`` gives.
        labels: [K] labels in physical units.
        property: What they are.

    Raises:
        InputError: If the labels are too few, all the same, or have no logarithm where one is wanted.
    """
    check_labels(labels, property)
    learned = np.log10(labels) if property.log else labels
    scaled = standardized(features)
    predicted = leave_one_out(scaled, learned)
    if property.log:
        predicted = np.power(10.0, predicted)
    target = (learned - learned.mean()) / learned.std()
    return Suitability(log_evidence(scaled, target), float(np.abs(predicted - labels).mean()))


def check_labels(labels: Array, property: Property) -> None:
    """Refuse labels that no features can be judged by.

    Raises:
        InputError: If there are fewer than three, they are all the same, or one is not positive where the logarithm
            is what models learn.
    """
    if len(labels) < MIN_LABELS:
        raise InputError(f"property {property.name}: {len(labels)} training labels, at least {MIN_LABELS} are needed")
    if property.log and labels.min() <= 0:
        raise InputError(
            f"property {property.name}: log needs positive labels, {int((labels <= 0).sum())} are not; "
            "import it without log or leave those labels out"
        )
    if labels.min() == labels.max():
        raise InputError(f"property {property.name}: all {len(labels)} training labels are {labels[0]:.6g}")


def standardized(features: Array) -> Array:
    """Every feature with mean zero and the same variance, so that a crystal's squares sum to one on average.

    What is left is independent of the number of features: twice the same ones are worth no more than once.
    """
    spread = features.std(axis=0)
    told = spread > CONSTANT * spread.max()
    scaled = np.where(told, (features - features.mean(axis=0)) / np.where(told, spread, 1.0), 0.0)
    shared: Array = scaled / np.sqrt(max(told.sum(), 1))
    return shared


def log_evidence(features: Array, target: Array) -> float:
    """LogME: the largest log evidence of a Bayesian linear model of the target, per label.

    You, Liu, Wang & Long, LogME: practical assessment of pre-trained models for transfer learning, ICML 2021. Weights
    of the model are integrated out; the precisions of weights and noise are those that make the labels most probable,
    found by the fixed-point iteration of MacKay. So it may be used where there are many more features than labels,
    and compares features of different number.

    The intercept is projected out before. A model that only shifts the target to mean zero would, with fewer labels
    than features, reproduce that mean without noise, and be given infinite evidence for it.

    Args:
        features: [K, D] standardized features.
        target: [K] standardized target.

    Returns:
        Nats per label.
    """
    inputs, outputs = _contrasts(features), _contrasts(target)
    model = BayesianRidge(fit_intercept=False, compute_score=True, max_iter=1000, tol=1e-5, lambda_init=1.0)
    model.fit(inputs, outputs)
    return float(model.scores_[-1]) / len(outputs)


def leave_one_out(features: Array, target: Array) -> Array:
    """[K, D] standardized features, [K] target -> [K] each predicted by a ridge regression on all others.

    Its penalty is the one whose predictions are best.
    """
    center, scale = target.mean(), target.std()
    model = RidgeCV(PENALTIES, scoring="neg_mean_absolute_error", store_cv_results=True)
    model.fit(features, (target - center) / scale)
    best = int(np.argmin(np.abs(PENALTIES - model.alpha_)))
    predicted: Array = model.cv_results_[:, best] * scale + center
    return predicted


def median_mae(labels: Array) -> float:
    """Mean absolute error of predicting each of [K] labels by the median of all others."""
    ordered, number = np.sort(labels), len(labels)
    left_out = np.arange(number)
    # Without one of the ordered labels, the others behind it move up by a place.
    middle = [ordered[place + (left_out <= place)] for place in ((number - 2) // 2, (number - 1) // 2)]
    return float(np.abs(ordered - (middle[0] + middle[1]) / 2).mean())


def agreement(scores: Mapping[str, float], errors: Mapping[str, float]) -> float:
    """Kendall's tau between the order by score and the true order, over what both name.

    Args:
        scores: Higher is better.
        errors: Lower is better.

    Returns:
        1 where every pair stands in the right order, -1 where every one stands in the wrong order.

    Raises:
        InputError: If they share fewer than two names.
    """
    names = [name for name in scores if name in errors]
    if len(names) < 2:
        raise InputError(f"true errors of {len(names)} of the checkpoints are given, an order takes two")
    return float(kendalltau([scores[name] for name in names], [-errors[name] for name in names]).statistic)


def _contrasts(values: Array) -> Array:
    """[K, ...] -> [K - 1, ...]: what is left when constants are reflected onto the first axis and dropped."""
    mirror = np.full(len(values), len(values) ** -0.5)
    mirror[0] -= 1.0
    reflected: Array = values - np.multiply.outer(mirror, mirror @ values) * (2.0 / (mirror @ mirror))
    return reflected[1:]
