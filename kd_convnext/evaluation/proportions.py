"""Computes intervals of proportions that hold for small numbers, with the group as the unit."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import beta, norm, t

LEVEL = 0.95
"""Of every interval."""

FEW = 10
"""Groups below which a class is marked: its figures say little."""


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low: Its lower end, NaN if nothing is known.
        high: Its upper end.
    """

    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Returns whether the interval excludes 0 (an end at 0 does not count as excluding it)."""
        return self.low > 0 or self.high < 0

    def joined(self, other: "Interval") -> "Interval":
        """Returns the smallest interval that holds both; a NaN end is replaced by the other's."""
        return Interval(float(np.fmin(self.low, other.low)), float(np.fmax(self.high, other.high)))


UNKNOWN = Interval(math.nan, math.nan)
"""The interval of a value that nothing is known of."""


def exact_interval(successes: float, trials: float, level: float = LEVEL) -> Interval:
    """Computes the exact interval of a proportion (Clopper & Pearson 1934).

    Args:
        successes: 0..``trials``; need not be whole where ``trials`` is an effective number.
        trials: Independent trials.
        level: Probability, 0..1.

    Returns:
        The interval within 0..1; 0 to 1 without a trial.
    """
    if trials <= 0:
        return Interval(0.0, 1.0)
    tail, failures = (1 - level) / 2, trials - successes
    low = 0.0 if successes <= 0 else float(beta.ppf(tail, successes, failures + 1))
    high = 1.0 if failures <= 0 else float(beta.ppf(1 - tail, successes + 1, failures))
    return Interval(low, high)


def effective_trials(successes: npt.ArrayLike, trials: npt.ArrayLike) -> float:
    """Counts the independent trials that clustered ones are worth (Korn & Graubard 1998).

    The trials are divided by the design effect, the variance of the proportion by cluster over that of independent
    trials, and corrected for how few clusters the former is estimated from. Clusters whose trials all end alike
    are worth (sum n)² / sum n²; never fewer are returned, nor more than there are trials. Where all trials end
    alike nothing is seen of the variance, and the former is returned.

    Args:
        successes: [L], of each cluster.
        trials: [L], of each cluster; clusters without a trial count nowhere.

    Returns:
        A number in 0..sum of ``trials``; the sum itself where each cluster has one trial.
    """
    right, asked = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    right, asked = right[asked > 0], asked[asked > 0]
    number, total = len(asked), float(asked.sum())
    if not number:
        return 0.0
    alike = total**2 / float((asked**2).sum())
    share = float(right.sum()) / total
    if number < 2 or share <= 0 or share >= 1 or total <= alike:
        return alike
    clustered = number / (number - 1) * float(((right - share * asked) ** 2).sum()) / total**2
    independent = share * (1 - share) / (total - 1)
    corrected = (t.ppf(1 - (1 - LEVEL) / 2, total - 1) / t.ppf(1 - (1 - LEVEL) / 2, number - 1)) ** 2
    found = total * corrected * independent / clustered if clustered > 0 else total * corrected
    return float(np.clip(found, alike, total))


def clustered_interval(successes: npt.ArrayLike, trials: npt.ArrayLike, level: float = LEVEL) -> Interval:
    """Computes the interval of a proportion whose trials come in clusters (Korn & Graubard 1998).

    It is the exact interval of the effective number of trials; with one trial a cluster it is that of Clopper and
    Pearson.

    Args:
        successes: [L], right answers of each group.
        trials: [L], answers of each group.
        level: Probability, 0..1.

    Returns:
        The interval within 0..1, never a single point; NaN without a trial.
    """
    right, asked = np.asarray(successes, dtype=np.float64), np.asarray(trials, dtype=np.float64)
    if not asked.sum():
        return UNKNOWN
    worth = effective_trials(right, asked)
    return exact_interval(float(right.sum() / asked.sum()) * worth, worth, level)


def f1_interval(right: npt.ArrayLike, concerned: npt.ArrayLike, level: float = LEVEL) -> Interval:
    """Computes the interval of a class's F1.

    F1 is 2 J / (1 + J) of the share J of right answers among those labelled or predicted as the class, a
    proportion: its interval is turned into that of F1, which grows with it.

    Args:
        right: [L], answers of each group that are rightly of the class.
        concerned: [L], answers labelled or predicted as the class.
        level: Probability, 0..1.

    Returns:
        The interval within 0..1; NaN where no answer concerns the class.
    """
    found = clustered_interval(right, concerned, level)
    return Interval(2 * found.low / (1 + found.low), 2 * found.high / (1 + found.high))


def mean_interval(values: npt.ArrayLike, found: list[Interval]) -> Interval:
    """Computes the interval of a mean from those of its independent parts (MOVER: Zou & Donner 2008).

    Args:
        values: [K].
        found: K intervals; one that is NaN counts as a point.

    Returns:
        The interval of the mean of ``values``.
    """
    points = np.asarray(values, dtype=np.float64)
    low = np.nan_to_num(points - np.array([one.low for one in found])).clip(0)
    high = np.nan_to_num(np.array([one.high for one in found]) - points).clip(0)
    middle, count = float(points.mean()), len(points)
    return Interval(
        max(0.0, middle - float(np.sqrt((low**2).sum())) / count),
        min(1.0, middle + float(np.sqrt((high**2).sum())) / count),
    )


def difference_interval(
    values: tuple[float, float], found: tuple[Interval, Interval], correlation: float = 0.0
) -> Interval:
    """Computes the interval of a difference from those of its sides (MOVER: Newcombe 1998, Zou & Donner 2008).

    Args:
        values: Both sides, 0..1.
        found: Their intervals.
        correlation: Of the two sides, -1..1.

    Returns:
        The interval of the first minus the second, within -1..1.
    """
    (one, other), (mine, theirs) = values, found
    down, up = (one - mine.low, theirs.high - other), (mine.high - one, other - theirs.low)
    reach = [math.sqrt(max(0.0, a * a - 2 * correlation * a * b + b * b)) for a, b in (down, up)]
    return Interval(max(-1.0, one - other - reach[0]), min(1.0, one - other + reach[1]))


def unseen_difference(groups: float, level: float = LEVEL) -> Interval:
    """Computes the interval of a paired difference of proportions that no group shows (Tango 1998, score interval).

    Args:
        groups: L, above 0, all answered alike by both sides; what they are worth where photographs of a group count.
        level: Probability, 0..1.

    Returns:
        From -z²/(L + z²) to z²/(L + z²), z the quantile of the normal distribution.
    """
    square = float(norm.ppf((1 + level) / 2)) ** 2
    return Interval(-square / (groups + square), square / (groups + square))


def digits(groups: int) -> int:
    """Returns the number of digits to print of a share of so many groups: two below a hundred, else three."""
    return 2 if groups < 100 else 3


def with_interval(value: float, span: Interval, places: int) -> str:
    """Writes a value with its interval: ``0.84 [0.71, 0.93]``; what is unknown of it is left out, ``-`` for all.

    Args:
        value: NaN where it is unknown.
        span: Its interval; NaN where it is unknown.
        places: Digits behind the point.
    """
    if math.isnan(value):
        return "-"
    if math.isnan(span.low) or math.isnan(span.high):
        return f"{value:.{places}f}"
    return f"{value:.{places}f} [{span.low:.{places}f}, {span.high:.{places}f}]"
