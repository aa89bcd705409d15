"""Computes predictive values at a prevalence, and net benefit over thresholds."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from kd_convnext.evaluation.proportions import Interval

Floats = npt.NDArray[np.float64]
Values = TypeVar("Values", float, Floats)


def predictive_values(sensitivity: float, specificity: float, prevalence: float) -> tuple[float, float]:
    """Computes the predictive values of a test by Bayes' rule.

    Args:
        sensitivity: 0..1.
        specificity: 0..1.
        prevalence: Share of the class among those the test will meet, 0..1.

    Returns:
        Positive and negative predictive value; NaN where no answer of that kind is ever given.
    """
    alarms, calms = sensitivity * prevalence, specificity * (1 - prevalence)
    false_alarms, missed = (1 - specificity) * (1 - prevalence), (1 - sensitivity) * prevalence
    positive = alarms / (alarms + false_alarms) if alarms + false_alarms else float("nan")
    negative = calms / (calms + missed) if calms + missed else float("nan")
    return positive, negative


def predictive_intervals(sensitivity: Interval, specificity: Interval, prevalence: float) -> tuple[Interval, Interval]:
    """Computes intervals of predictive values from those of sensitivity and specificity.

    Both values grow with either. Taking both lower, or both upper, ends together is wider than 95 %.

    Args:
        sensitivity: Its interval.
        specificity: Its interval.
        prevalence: Taken as known.

    Returns:
        Of the positive and the negative predictive value.
    """
    low = predictive_values(sensitivity.low, specificity.low, prevalence)
    high = predictive_values(sensitivity.high, specificity.high, prevalence)
    return Interval(low[0], high[0]), Interval(low[1], high[1])


def net_benefit(sensitivity: Values, specificity: Values, prevalence: float, threshold: Values) -> Values:
    """Computes the net benefit of a test at a prevalence (Vickers & Elkin 2006).

    Args:
        sensitivity: 0..1.
        specificity: 0..1.
        prevalence: Share of the class among those the test will meet, 0..1.
        threshold: Probability from which it acts, 0..1 without 1: how a false alarm is weighed.

    Returns:
        True positives a case, less the false ones by their weight.
    """
    return sensitivity * prevalence - (1 - specificity) * (1 - prevalence) * threshold / (1 - threshold)


def decision_curve(
    scores: Floats, positive: npt.NDArray[np.bool_], thresholds: Floats, prevalence: float | None = None
) -> tuple[Floats, Floats]:
    """Computes the net benefit of acting where a score reaches a threshold.

    Args:
        scores: Probabilities of the class, [N].
        positive: Whether it is the class, [N]; some are, some are not.
        thresholds: [T], each within 0..1 without 1.
        prevalence: Share of the class where it is acted, 0..1; by default that of the answers.

    Returns:
        Net benefit of the model and of acting on all, each [T], in true positives a case; acting on none has 0.
    """
    acted = scores[None, :] >= thresholds[:, None]
    share = float(positive.mean()) if prevalence is None else prevalence
    seen, spared = acted[:, positive].mean(axis=1), 1 - acted[:, ~positive].mean(axis=1)
    everyone = net_benefit(np.ones_like(thresholds), np.zeros_like(thresholds), share, thresholds)
    return net_benefit(seen, spared, share, thresholds), everyone
