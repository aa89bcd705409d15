"""Computes sensitivity, specificity and precision of a class at thresholds on its probability, with intervals."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kd_convnext.evaluation.discrimination import Ranking
from kd_convnext.evaluation.proportions import Interval, clustered_interval


@dataclass(frozen=True)
class Share:
    """A share of answers.

    Attributes:
        value: 0..1, NaN of none.
        interval: At 95 %, with the group as the unit.
    """

    value: float
    interval: Interval


@dataclass(frozen=True)
class OperatingPoint:
    """What becomes of a class where its probability must reach a threshold.

    Attributes:
        called: Answers that reach it.
        sensitivity: Share of the class that reaches it.
        specificity: Share of the rest that does not.
        precision: Share of the class among those that reach it.
    """

    called: int
    sensitivity: Share
    specificity: Share
    precision: Share


def operating_point(ranking: Ranking, threshold: float) -> OperatingPoint:
    """Computes sensitivity, specificity and precision at a threshold.

    Args:
        ranking: N answers.
        threshold: A score that reaches it is called the class.

    Returns:
        The shares, with exact intervals for as many trials as the groups are worth.
    """
    called, positive = ranking.scores >= threshold, ranking.positive
    return OperatingPoint(
        called=int(called.sum()),
        sensitivity=_share(called, positive, ranking.groups),
        specificity=_share(~called, ~positive, ranking.groups),
        precision=_share(positive, called, ranking.groups),
    )


def operating_points(ranking: Ranking, most: int = 25) -> list[OperatingPoint]:
    """Computes the points of thresholds from the strictest to the mildest.

    Args:
        ranking: N answers.
        most: So many thresholds, at equal numbers of scores between.

    Returns:
        The points, first that where nothing is called the class, last that where everything is.
    """
    scores = np.unique(ranking.scores)[::-1]
    chosen = np.unique(np.linspace(0, len(scores) - 1, min(most, len(scores))).round().astype(int))
    return [operating_point(ranking, threshold) for threshold in (np.inf, *scores[chosen])]


def _share(hit: npt.NDArray[np.bool_], among: npt.NDArray[np.bool_], groups: npt.NDArray[np.int64]) -> Share:
    """Returns the share of hits among some answers."""
    _, member = np.unique(groups[among], return_inverse=True)
    hits, asked = np.bincount(member, weights=hit[among]), np.bincount(member)
    value = float(hits.sum() / asked.sum()) if len(asked) else float("nan")
    return Share(value, clustered_interval(hits, asked))
