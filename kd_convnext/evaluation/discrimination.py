"""Computes ROC and precision-recall curves of each class against the rest, with intervals by group."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.stats import norm, rankdata

from kd_convnext.evaluation.proportions import FEW, LEVEL, UNKNOWN, Interval

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Ranking:
    """Scores of one class against the rest.

    Attributes:
        scores: float64 [N], higher for the class.
        positive: bool [N], whether the answer is of the class.
        groups: int64 [N], number of the group: patient, lesion, or what else is taken as the unit.
        prevalence: Share of the class where the model is to be used, 0..1, which net benefit is of; None: as here.
    """

    scores: Floats
    positive: npt.NDArray[np.bool_]
    groups: npt.NDArray[np.int64]
    prevalence: float | None = None

    @property
    def mixed(self) -> bool:
        """Whether there are both, without which no curve exists."""
        return bool(self.positive.any() and not self.positive.all())

    def groups_of(self, positive: bool) -> int:
        """Counts the groups of the class, or of the rest."""
        return len(np.unique(self.groups[self.positive == positive]))


@dataclass(frozen=True)
class Area:
    """An area under a curve.

    Attributes:
        value: 0..1, NaN where there is no curve.
        interval: At 95 %.
    """

    value: float
    interval: Interval


def roc_area(ranking: Ranking, level: float = LEVEL) -> Area:
    """Computes the area under the ROC curve and its interval.

    The variance is that of DeLong et al. (1988) with the components of a group added up (Obuchowski 1997); the
    interval is symmetric on the scale of the logit. With fewer than ten groups on a side, or where every group
    ranks alike, that variance says little: Newcombe's (2006) interval stands instead, with groups as numbers.

    Args:
        ranking: N answers.
        level: Probability, 0..1.

    Returns:
        The area; NaN where one side is empty.
    """
    if not ranking.mixed:
        return Area(math.nan, UNKNOWN)
    value, variance = _delong(ranking)
    few = min(ranking.groups_of(True), ranking.groups_of(False)) < FEW
    if few or variance <= 0 or not 0 < value < 1:
        return Area(value, _newcombe(value, ranking.groups_of(True), ranking.groups_of(False), level))
    reach = norm.ppf((1 + level) / 2) * math.sqrt(variance) / (value * (1 - value))
    logit = math.log(value / (1 - value))
    return Area(value, Interval(_expit(logit - reach), _expit(logit + reach)))


def _delong(ranking: Ranking) -> tuple[float, float]:
    """Returns the area and its variance with groups as clusters (Obuchowski 1997, formulas 3 to 6)."""
    positive = ranking.positive
    cases, controls = ranking.scores[positive], ranking.scores[~positive]
    m, n = len(cases), len(controls)
    together = rankdata(np.concatenate([cases, controls]))
    above = (together[:m] - rankdata(cases)) / n
    below = 1 - (together[m:] - rankdata(controls)) / m
    value = float(above.mean())
    _, member = np.unique(ranking.groups, return_inverse=True)
    number = int(member.max()) + 1
    of_cases = np.bincount(member[positive], weights=above - value, minlength=number)
    of_controls = np.bincount(member[~positive], weights=below - value, minlength=number)
    i10, i01 = (len(np.unique(member[side])) for side in (positive, ~positive))
    if min(i10, i01) < 2:
        return value, 0.0
    variance = i10 / ((i10 - 1) * m**2) * float((of_cases**2).sum())
    variance += i01 / ((i01 - 1) * n**2) * float((of_controls**2).sum())
    if number > 1:
        variance += 2 * number / ((number - 1) * m * n) * float((of_cases * of_controls).sum())
    return value, max(0.0, variance)


def _newcombe(value: float, cases: int, controls: int, level: float) -> Interval:
    """Inverts the score test of Newcombe (2006), method 5, whose variance is Hanley & McNeil's with equal halves."""
    z, half = float(norm.ppf((1 + level) / 2)), (cases + controls) / 2

    def beyond(area: float) -> float:
        spread = 1 + (half - 1) * ((1 - area) / (2 - area) + area / (1 + area))
        return abs(value - area) - z * math.sqrt(max(0.0, area * (1 - area) * spread / (cases * controls)))

    # The observed area itself is a root where it is 0 or 1; just beside it the test never rejects.
    edge, near = 1e-12, 1e-9
    low = brentq(beyond, edge, value - near) if value > near and beyond(edge) > 0 else 0.0
    high = brentq(beyond, value + near, 1 - edge) if value < 1 - near and beyond(1 - edge) > 0 else 1.0
    return Interval(float(low), float(high))


def roc_curve(ranking: Ranking) -> tuple[Floats, Floats]:
    """Returns the points of the ROC curve.

    Args:
        ranking: Of both sides.

    Returns:
        1 - specificity and sensitivity, each [T], from 0 to 1; equal scores make one step.
    """
    right, wrong = _counted(ranking)
    return wrong / wrong[-1], right / right[-1]


def precision_recall_curve(ranking: Ranking) -> tuple[Floats, Floats]:
    """Returns the points of the precision-recall curve.

    Args:
        ranking: Of both sides.

    Returns:
        Recall and precision, each [T], the strictest threshold first.
    """
    right, wrong = _counted(ranking)
    right, wrong = right[1:], wrong[1:]
    return right / right[-1], right / (right + wrong)


def average_precision(ranking: Ranking, resamples: int = 1000, seed: int = 0) -> Area:
    """Computes the area under the precision-recall curve, as steps, and its interval.

    The interval is a percentile bootstrap of groups. With fewer than ten groups of the class, and for a ranking
    without a mistake, of which every resample is one too, it is Boyd et al.'s (2013) logit interval with the groups
    as number.

    Args:
        ranking: N answers.
        resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        The area; NaN where one side is empty.
    """
    if not ranking.mixed:
        return Area(math.nan, UNKNOWN)
    value = _steps(ranking.scores, ranking.positive, np.ones(len(ranking.scores)))
    cases = ranking.groups_of(True)
    if cases < FEW or math.isclose(value, 1):
        inner = min(max(value, 1 / (2 * cases + 2)), 1 - 1 / (2 * cases + 2))
        logit, reach = math.log(inner / (1 - inner)), norm.ppf((1 + LEVEL) / 2) / math.sqrt(cases * inner * (1 - inner))
        low, high = _expit(logit - reach), _expit(logit + reach)
        return Area(value, Interval(min(low, value), max(high, value)))
    _, member = np.unique(ranking.groups, return_inverse=True)
    rng, drawn = np.random.default_rng(seed), []
    number = int(member.max()) + 1
    for _ in range(resamples):
        weights = rng.multinomial(number, np.full(number, 1 / number))[member].astype(np.float64)
        if weights[ranking.positive].any():
            drawn.append(_steps(ranking.scores, ranking.positive, weights))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Area(value, Interval(float(min(low, value)), float(max(high, value))))


def _steps(scores: Floats, positive: npt.NDArray[np.bool_], weights: Floats) -> float:
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.nonzero(np.diff(scores[order]))[0], len(order) - 1)
    right = np.cumsum((weights * positive)[order])[ends]
    all_ = np.cumsum(weights[order])[ends]
    precision = np.divide(right, all_, out=np.zeros_like(right), where=all_ > 0)
    return float((np.diff(right, prepend=0) * precision).sum() / right[-1])


def _counted(ranking: Ranking) -> tuple[Floats, Floats]:
    order = np.argsort(-ranking.scores, kind="stable")
    ends = np.append(np.nonzero(np.diff(ranking.scores[order]))[0], len(order) - 1)
    right = np.cumsum(ranking.positive[order])[ends].astype(np.float64)
    return np.append(0.0, right), np.append(0.0, ends + 1 - right)


def _expit(value: float) -> float:
    return 1 / (1 + math.exp(-value))
