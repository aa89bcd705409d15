"""Fits temperature scaling (Guo et al. 2017, arXiv:1706.04599), one number that calibrates the probabilities.

The fit is a minimisation over one variable, convex in 1/T; scipy does it. The libraries that offer it as an estimator
either want to wrap the classifier (scikit-learn, from 1.8 on) or are no longer kept up.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Labels, Logits, softmax

if TYPE_CHECKING:
    from kd_convnext.evaluation.answers import Evaluation


TEMPERATURES = (0.05, 20.0)
"""Where the temperature is looked for; a fit at an end means that the network says nothing."""


@dataclass(frozen=True)
class Scores:
    """Scores of probabilities; smaller is better.

    Attributes:
        nll: Mean negative log-likelihood, in nats.
        brier: Mean of the squared distance to the one-hot label, summed over classes (Brier 1950), 0 to 2.
        ece: Expected calibration error, 15 bins of equal width, 0 to 1.
    """

    nll: float
    brier: float
    ece: float


def negative_log_likelihood(logits: Logits, labels: Labels, temperature: float, weights: Logits) -> float:
    """Returns the weighted mean negative log-likelihood in nats.

    Args:
        logits: [N, K].
        labels: int64 [N].
        temperature: Above 0.
        weights: [N], of sum 1.
    """
    scaled = logits / temperature
    top = scaled.max(axis=1)
    log_sums = top + np.log(np.exp(scaled - top[:, None]).sum(axis=1))
    return float(weights @ (log_sums - scaled[np.arange(len(labels)), labels]))


def fit_temperature(logits: Logits, labels: Labels, groups: npt.NDArray[np.str_]) -> float:
    """Finds the temperature of least negative log-likelihood; every group counts alike.

    Args:
        logits: float64 [N, K].
        labels: int64 [N].
        groups: str [N], the group of each row: patient or lesion.

    Returns:
        The temperature, within `TEMPERATURES`.
    """
    from scipy.optimize import minimize_scalar

    _, member = np.unique(groups, return_inverse=True)
    weights = 1 / np.bincount(member)[member]
    weights /= weights.sum()
    found = minimize_scalar(
        lambda log_t: negative_log_likelihood(logits, labels, float(np.exp(log_t)), weights),
        bounds=tuple(np.log(TEMPERATURES)),
        method="bounded",
        options={"xatol": 1e-6},
    )
    return float(np.exp(found.x))


def helpful_temperature(logits: Logits, labels: Labels, groups: npt.NDArray[np.str_]) -> float:
    """Fits the temperature, and keeps it only where it improves probabilities of groups that it has not seen.

    Args:
        logits: float64 [N, K].
        labels: int64 [N].
        groups: str [N], the group of each row: patient or lesion.

    Returns:
        The temperature; 1 where the cross-fitted negative log-likelihood, a mean over groups, is no smaller than
        that of the plain probabilities, and where the fit ends at an end of `TEMPERATURES`.
    """
    found = fit_temperature(logits, labels, groups)
    lowest, highest = TEMPERATURES
    # Where all labels are hit the likelihood rises without end, flat at last: the search stops somewhere.
    even = np.full(len(labels), 1 / len(labels))
    if not lowest * 1.01 < found < highest / 1.01 or negative_log_likelihood(logits, labels, found, even) < 1e-6:
        return 1.0
    _, member = np.unique(groups, return_inverse=True)
    weights = 1 / np.bincount(member)[member]
    rows, tiny = np.arange(len(labels)), np.finfo(np.float64).tiny
    plain, scaled = softmax(logits)[rows, labels], cross_fitted(logits, labels, groups)[rows, labels]
    gain = weights @ (np.log(np.maximum(scaled, tiny)) - np.log(np.maximum(plain, tiny)))
    return found if gain > 0 else 1.0


def cross_fitted(
    logits: Logits, labels: Labels, groups: npt.NDArray[np.str_], *, folds: int = 5, seed: int = 0
) -> npt.NDArray[np.float64]:
    """Returns probabilities that are each scaled by a temperature fitted without the row's group.

    Args:
        logits: float64 [N, K].
        labels: int64 [N].
        groups: str [N], the group of each row: patient or lesion.
        folds: How many parts; fewer where there are fewer groups.
        seed: Decides the parts.

    Returns:
        float64 [N, K].
    """
    names, member = np.unique(groups, return_inverse=True)
    parts = min(folds, len(names))
    if parts < 2:
        return softmax(logits)
    place = np.random.default_rng(seed).permutation(len(names)) % parts
    result = np.empty_like(logits)
    for part in range(parts):
        inside = place[member] == part
        temperature = fit_temperature(logits[~inside], labels[~inside], groups[~inside])
        result[inside] = softmax(logits[inside], temperature)
    return result


def scores(evaluation: "Evaluation") -> Scores:
    """Computes NLL, Brier score and calibration error on labelled rows.

    Args:
        evaluation: At least one row with a label.
    """
    known = evaluation.labels >= 0
    probabilities, labels = evaluation.probabilities[known], evaluation.labels[known]
    truth = np.eye(probabilities.shape[1])[labels]
    likely = np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
    return Scores(
        nll=float(-np.log(likely).mean()),
        brier=float(((probabilities - truth) ** 2).sum(axis=1).mean()),
        ece=evaluation.metrics()["ece"],
    )
