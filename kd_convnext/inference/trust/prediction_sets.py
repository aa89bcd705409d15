"""Computes conformal prediction sets that hold the true class at the promised rate, per class, counted by group.

Split-conformal prediction (Vovk, Gammerman, Shafer 2005, chapter 2) with one threshold a class (Mondrian, chapter 4):
a set holds class y when the score ``1 - p(y)`` is not above the threshold of y. Photographs of one patient
or lesion are alike, so groups are what is exchangeable (patients where they are known, else lesions): each counts once,
divided evenly among its photographs or lesions (hierarchical conformal prediction, Lee, Barber, Willett 2023,
arXiv:2306.06342). A threshold at coverage c from n groups needs ``n / (n + 1) >= c``: 9 at 90 %.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from kd_convnext.errors import ConfigError, Finding

Few = Literal["include", "pooled"]
"""What becomes of a class with too few lesions: in every set, or judged by the threshold of all classes together."""

Scores = npt.NDArray[np.float64]

_ROUNDING = 1e-9  # n weights of 1 / (n + 1) do not sum exactly

MARGIN = 1e-5
"""A threshold is the very score of some photograph, which another runtime's rounding must not push out of its set."""


class Held(NamedTuple):
    """Answers for labelled rows that the network behind each has not been fitted on.

    Attributes:
        probabilities: float64 [N, K].
        labels: int64 [N], positions of the classes.
        groups: str [N], the group of each row: patient or lesion.
    """

    probabilities: Scores
    labels: npt.NDArray[np.int64]
    groups: npt.NDArray[np.str_]

    @classmethod
    def of(cls, parts: "Sequence[Held]") -> "Held":
        """Returns all of several. A group that several networks answered for has several rows, and counts once."""
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


@dataclass(frozen=True)
class ClassThresholds:
    """One threshold a class.

    Attributes:
        class_names: K names in the order of the model's outputs.
        values: K thresholds of ``1 - p``; infinite where the class is in every set.
        lesions: K counts of the calibration groups of each class: lesions, or patients where they are known.
        guaranteed: K times whether the coverage is promised, for the class or for what it is merged with.
        crossed: K counts of the groups that a threshold stands on together with those that other networks have held
            out; near the coverage by experience, not promised. 0 where no others were needed, or too few are there.
        merged: Classes that share a threshold; the promise then holds for them together.
    """

    class_names: tuple[str, ...]
    values: tuple[float, ...]
    lesions: tuple[int, ...]
    guaranteed: tuple[bool, ...]
    merged: tuple[tuple[str, ...], ...] = ()
    crossed: tuple[int, ...] = ()

    def sets(self, probabilities: Scores) -> npt.NDArray[np.bool_]:
        """Returns which classes are in the prediction sets.

        Args:
            probabilities: [N, K], made as those of the calibration were.

        Returns:
            bool [N, K].
        """
        return np.asarray(1 - probabilities <= np.array(self.limits))

    @property
    def always(self) -> tuple[str, ...]:
        """Classes that are in every set, as there were too few groups to calibrate on."""
        return tuple(name for name, value in zip(self.class_names, self.values, strict=True) if np.isinf(value))

    def together(self, name: str) -> tuple[str, ...]:
        """Returns the merger that a class is promised with; empty where the promise is of the class itself."""
        return next((group for group in self.merged if name in group), ())

    @property
    def limits(self) -> tuple[float, ...]:
        """The thresholds as they are applied, with the margin for rounding."""
        return tuple(value + MARGIN for value in self.values)


def weighted_threshold(scores: Scores, groups: npt.NDArray[np.str_], coverage: float) -> float:
    """Returns the conformal quantile of scores that come in groups.

    Args:
        scores: float64 [N], larger is stranger.
        groups: str [N], the group of each score; a group's weight is spread over its scores.
        coverage: The share of new groups (of one random photograph each) whose score must not be above the
            threshold, in 0..1.

    Returns:
        The smallest such threshold; infinite where there are too few groups for the coverage.
    """
    names, member = np.unique(groups, return_inverse=True)
    if not len(names):
        return float("inf")
    weights = 1 / np.bincount(member)[member] / (len(names) + 1)
    order = np.argsort(scores, kind="stable")
    reached = np.flatnonzero(np.cumsum(weights[order]) >= coverage - _ROUNDING)
    return float(scores[order][reached[0]]) if len(reached) else float("inf")


def lesions_needed(coverage: float) -> int:
    """Returns how many calibration lesions, or patients, a class needs for a coverage in 0..1 (9 for 0.9)."""
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
    others: Held | None = None,
) -> ClassThresholds:
    """Finds the threshold of every class.

    Args:
        probabilities: float64 [N, K]; the function of the photograph that made them must not have been fitted on
            these photographs.
        labels: int64 [N], positions in ``class_names``.
        groups: str [N], the group of each row.
        class_names: K names.
        coverage: How often a set must hold the true class, in 0..1 exclusive, for each class by itself.
        merged: Classes to be counted together, each at most once.
        few: What to do with a class (or a merger) that has too few groups.
        others: Of lesions that other networks of the same recipe have held out, with the same names for the same
            groups. They are counted in where a class (or a merger) has too few without them. See `cross_conformal`.

    Returns:
        The thresholds.

    Raises:
        ConfigError: The coverage is not between 0 and 1, or a merger names an unknown class or one twice.
    """
    check_options(class_names, coverage, merged)
    own = Held(probabilities, labels, groups)
    both = own if others is None else Held.of([own, others])
    category = {name: (name,) for name in class_names} | {name: tuple(group) for group in merged for name in group}
    position = {name: number for number, name in enumerate(class_names)}
    values, lesions, guaranteed, crossed = [], [], [], []
    for number, name in enumerate(class_names):
        members = [position[member] for member in category[name]]
        threshold, _ = _threshold(own, members, coverage)
        lesions.append(len(np.unique(groups[labels == number])))
        guaranteed.append(bool(np.isfinite(threshold)))
        count = 0
        if not guaranteed[-1]:
            threshold, count = _threshold(both, members, coverage)
        crossed.append(count if np.isfinite(threshold) else 0)
        if not np.isfinite(threshold) and few == "pooled":
            threshold, _ = _threshold(own, range(len(class_names)), coverage)
        values.append(threshold)
    return ClassThresholds(
        class_names=tuple(class_names),
        values=tuple(values),
        lesions=tuple(lesions),
        guaranteed=tuple(guaranteed),
        merged=tuple(tuple(group) for group in merged),
        crossed=tuple(crossed),
    )


def _threshold(held: Held, members: Sequence[int], coverage: float) -> tuple[float, int]:
    """Returns the threshold of some classes together, and on how many groups it stands."""
    rows = np.isin(held.labels, members)
    scores = 1 - held.probabilities[rows, held.labels[rows]]
    return weighted_threshold(scores, held.groups[rows], coverage), len(np.unique(held.groups[rows]))


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
    """Coverage: how often the sets held the true class.

    Attributes:
        class_name: Of which class.
        lesions: How many lesions were looked at.
        covered: In how many the set held the class.
        low: Lower end of the 95 % interval by group, corrected for the number of classes.
        high: Its upper end.
    """

    class_name: str
    lesions: int
    covered: int
    low: float
    high: float


def observed_coverage(
    sets: npt.NDArray[np.bool_],
    labels: npt.NDArray[np.int64],
    class_names: Sequence[str],
    groups: npt.NDArray[np.str_],
) -> tuple[Coverage, ...]:
    """Counts coverage class by class.

    Args:
        sets: bool [N, K], one row a lesion.
        labels: int64 [N]; lesions without one right class have -1 and are left out.
        class_names: K names.
        groups: str [N], what is taken as independent.

    Returns:
        One entry a class that occurs, with exact (Clopper-Pearson) intervals for as many lesions as their groups are
        worth, that hold at 95 % for all of them together (Bonferroni).
    """
    from kd_convnext.evaluation.proportions import clustered_interval  # SciPy, which no answer needs

    present = [number for number in range(len(class_names)) if (labels == number).any()]
    found = []
    for number in present:
        held = sets[labels == number, number]
        _, member = np.unique(groups[labels == number], return_inverse=True)
        hits, asked = np.bincount(member, weights=held), np.bincount(member)
        interval = clustered_interval(hits, asked, 1 - 0.05 / len(present))
        found.append(Coverage(class_names[number], len(held), int(held.sum()), interval.low, interval.high))
    return tuple(found)
