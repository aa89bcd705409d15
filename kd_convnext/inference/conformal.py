"""Prediction sets that hold the true class as often as promised, class by class, counted by lesion.

Split-conformal prediction (Vovk, Gammerman, Shafer 2005, chapter 2) with one threshold a class (Mondrian, chapter 4):
a set holds class y when the score ``1 - p(y)`` is not above the threshold of y. Photographs of one lesion are
alike, so lesions are what is exchangeable: each counts once, divided evenly among its photographs (hierarchical
conformal prediction, Lee, Barber, Willett 2023, arXiv:2306.06342). A threshold at coverage c from n lesions needs
``n / (n + 1) >= c``: 9 lesions at 90 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from kd_convnext.errors import ConfigError, Finding

Few = Literal["include", "pooled"]
"""What becomes of a class with too few lesions: in every set, or judged by the threshold of all classes together."""

Scores = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # n weights of 1 / (n + 1) do not sum exactly


@dataclass(frozen=True)
class ClassThresholds:
    """One threshold a class.

    Attributes:
        class_names: K names in the order of the model's outputs.
        values: K thresholds of ``1 - p``; infinite where the class is in every set.
        lesions: K counts of the calibration lesions of each class.
        guaranteed: K times whether the coverage is promised, for the class or for what it is merged with.
        merged: Classes that share a threshold; the promise then holds for them together.
    """

    class_names: tuple[str, ...]
    values: tuple[float, ...]
    lesions: tuple[int, ...]
    guaranteed: tuple[bool, ...]
    merged: tuple[tuple[str, ...], ...] = ()

    def sets(self, probabilities: Scores) -> npt.NDArray[np.bool_]:
        """Returns which classes are in the prediction sets.

        Args:
            probabilities: [N, K], made as those of the calibration were.

        Returns:
            bool [N, K].
        """
        return np.asarray(1 - probabilities <= np.array(self.values))


def weighted_threshold(scores: Scores, groups: npt.NDArray[np.str_], coverage: float) -> float:
    """Returns the conformal quantile of scores that come in groups.

    Args:
        scores: float64 [N], larger is stranger.
        groups: str [N], the lesion of each score; a lesion's weight is spread over its scores.
        coverage: The share of new lesions (of one random photograph each) whose score must not be above the
            threshold, in 0..1.

    Returns:
        The smallest such threshold; infinite where there are too few lesions for the coverage.
    """
    names, member = np.unique(groups, return_inverse=True)
    if not len(names):
        return float("inf")
    weights = 1 / np.bincount(member)[member] / (len(names) + 1)
    order = np.argsort(scores, kind="stable")
    reached = np.flatnonzero(np.cumsum(weights[order]) >= coverage - _ROUNDING)
    return float(scores[order][reached[0]]) if len(reached) else float("inf")


def lesions_needed(coverage: float) -> int:
    """Returns how many calibration lesions a class needs for a coverage in 0..1 (9 for 0.9)."""
    return int(np.ceil(coverage / (1 - coverage) - _ROUNDING))


def fit_thresholds(
    probabilities: Scores,
    labels: npt.NDArray[np.int64],
    groups: npt.NDArray[np.str_],
    class_names: Sequence[str],
    *,
    coverage: float = 0.9,
    merged: Sequence[Sequence[str]] = (),
    few: Few = "include",
) -> ClassThresholds:
    """Finds the threshold of every class.

    Args:
        probabilities: float64 [N, K]; the function of the photograph that made them must not have been fitted on
            these photographs.
        labels: int64 [N], positions in ``class_names``.
        groups: str [N], the lesion of each row; all different where rows are lesions.
        class_names: K names.
        coverage: How often a set must hold the true class, in 0..1 exclusive, for each class by itself.
        merged: Classes to be counted together, each at most once.
        few: What to do with a class (or a merger) that has too few lesions.

    Returns:
        The thresholds.

    Raises:
        ConfigError: The coverage is not between 0 and 1, or a merger names an unknown class or one twice.
    """
    check_options(class_names, coverage, merged)
    scores = 1 - probabilities[np.arange(len(labels)), labels]
    category = {name: (name,) for name in class_names} | {name: tuple(group) for group in merged for name in group}
    position = {name: number for number, name in enumerate(class_names)}
    values, lesions, guaranteed = [], [], []
    for number, name in enumerate(class_names):
        rows = np.isin(labels, [position[member] for member in category[name]])
        threshold = weighted_threshold(scores[rows], groups[rows], coverage)
        lesions.append(len(np.unique(groups[labels == number])))
        guaranteed.append(bool(np.isfinite(threshold)))
        if not guaranteed[-1] and few == "pooled":
            threshold = weighted_threshold(scores, groups, coverage)
        values.append(threshold)
    together = tuple(tuple(group) for group in merged)
    return ClassThresholds(tuple(class_names), tuple(values), tuple(lesions), tuple(guaranteed), together)


def check_options(class_names: Sequence[str], coverage: float, merged: Sequence[Sequence[str]]) -> None:
    """Refuses a coverage or mergers that cannot work.

    Args:
        class_names: The classes.
        coverage: Must be between 0 and 1.
        merged: Every class known, each at most once, two at least in a group.

    Raises:
        ConfigError: With all findings.
    """
    findings = []
    if not 0 < coverage < 1:
        findings.append(Finding("--coverage", f"{coverage} is not between 0 and 1", "Give for example 0.9."))
    named = [name for group in merged for name in group]
    for name in dict.fromkeys(named):
        if name not in class_names:
            remedy = f"The classes are {', '.join(class_names)}."
            findings.append(Finding("--merge", f"there is no class {name!r}", remedy))
        elif named.count(name) > 1:
            findings.append(Finding("--merge", f"{name!r} is named twice", "Name each class once."))
    if any(len(group) < 2 for group in merged):
        what = "a merger of fewer than two classes"
        findings.append(Finding("--merge", what, 'Write for example "Grade 1+Grade 3".'))
    if findings:
        raise ConfigError(findings)


@dataclass(frozen=True)
class Coverage:
    """How often the sets held the true class.

    Attributes:
        class_name: Of which class.
        lesions: How many lesions were looked at.
        covered: In how many the set held the class.
        low: Lower end of the 95 % interval, corrected for the number of classes.
        high: Its upper end.
    """

    class_name: str
    lesions: int
    covered: int
    low: float
    high: float


def observed_coverage(
    sets: npt.NDArray[np.bool_], labels: npt.NDArray[np.int64], class_names: Sequence[str]
) -> tuple[Coverage, ...]:
    """Counts coverage class by class.

    Args:
        sets: bool [N, K], one row a lesion.
        labels: int64 [N]; lesions without one right class have -1 and are left out.
        class_names: K names.

    Returns:
        One entry a class that occurs, with exact (Clopper-Pearson) intervals that hold at 95 % for all of them
        together (Bonferroni).
    """
    from scipy.stats import binomtest

    present = [number for number in range(len(class_names)) if (labels == number).any()]
    found = []
    for number in present:
        held = sets[labels == number, number]
        result = binomtest(int(held.sum()), len(held))
        interval = result.proportion_ci(confidence_level=1 - 0.05 / len(present), method="exact")
        name = class_names[number]
        found.append(Coverage(name, len(held), int(held.sum()), float(interval.low), float(interval.high)))
    return tuple(found)
