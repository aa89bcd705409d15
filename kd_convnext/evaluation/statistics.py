"""Computes scores, bootstrap intervals and paired tests, with the group as the unit: the patient, else the lesion.

Photographs of one patient or lesion resemble each other, and with repeated splits the same ones are judged several
times. So nothing here treats two photographs of a group as independent: a group is drawn, or exchanged, with all its
photographs of all repeats. Everything goes by the confusion matrix of each group, int64 [L, K, K] (rows true).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from kd_convnext.evaluation.proportions import (
    LEVEL,
    UNKNOWN,
    Interval,
    clustered_interval,
    f1_interval,
    mean_interval,
)

Metric = Literal["accuracy", "precision_macro", "recall_macro", "f1_macro", "f1_paper"]
METRICS: tuple[Metric, ...] = get_args(Metric)
Counts = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class GroupCounts:
    """Confusion matrix of each group.

    Attributes:
        groups: str [L], names, each once.
        counts: int64 [L, K, K], the confusion matrix of each group's photographs over all repeats, rows true.
        unit: What the groups are: ``lesion``, ``patient`` or ``group``.
    """

    groups: npt.NDArray[np.str_]
    counts: Counts
    unit: str = "lesion"

    @property
    def by(self) -> str:
        """Says by what intervals are: ``by lesion``, ``by patient``, ``by group of photographs``."""
        return f"by {self.unit}{' of photographs' if self.unit == 'group' else ''}"

    @property
    def head(self) -> str:
        """Heads a column of their number: ``Lesions``, ``Patients``, ``Groups``."""
        return f"{self.unit.capitalize()}s"

    def __len__(self) -> int:
        """Returns L."""
        return len(self.groups)

    @cached_property
    def total(self) -> Counts:
        """int64 [K, K], the confusion matrix of all photographs."""
        return np.asarray(self.counts.sum(axis=0), dtype=np.int64)

    @property
    def photographs(self) -> int:
        """Answers in all; a photograph that several repeats tested counts in each."""
        return int(self.counts.sum())

    @cached_property
    def strata(self) -> npt.NDArray[np.int64]:
        """int64 [L], the class most of the group's photographs have."""
        return np.asarray(self.counts.sum(axis=2).argmax(axis=1), dtype=np.int64)

    def per_class(self) -> npt.NDArray[np.int64]:
        """Counts groups.

        Returns:
            int64 [K], groups that have a photograph of the class.
        """
        return np.asarray((self.counts.sum(axis=2) > 0).sum(axis=0), dtype=np.int64)

    @property
    def occurring(self) -> list[int]:
        """Places of the classes that some photograph has."""
        return np.flatnonzero(self.total.sum(axis=1)).tolist()

    def lacking(self, class_names: Sequence[str]) -> str:
        """Describes the classes that no photograph has, and what that makes of means over all classes.

        Args:
            class_names: The K classes.

        Returns:
            A sentence; "" where every class occurs.
        """
        names = [name for place, name in enumerate(class_names) if place not in self.occurring]
        if not names:
            return ""
        one = len(names) == 1
        return (
            f"The class{'' if one else 'es'} {', '.join(names)} {'is' if one else 'are'} not among these photographs "
            f"and count{'s' if one else ''} as 0 in means over the classes."
        )


def with_unit(frame: pd.DataFrame) -> pd.DataFrame:
    """Adds ``unit`` and ``by`` to answers that have none: each ``lesion`` is one."""
    return frame if "unit" in frame else frame.assign(unit=frame["lesion"], by="lesion")


def count_groups(frame: pd.DataFrame, class_names: Sequence[str]) -> GroupCounts:
    """Counts answers by group.

    Args:
        frame: One row an answer: ``label`` and ``prediction`` (names of classes), ``unit`` (name of the group) and
            ``by`` (what the groups are, the same in all rows); without these ``lesion``.
        class_names: The K classes, in the order of the matrices.

    Returns:
        The counts, groups sorted by name. Rows whose label is no class (unknown) count nowhere.
    """
    frame = with_unit(frame)
    unit = str(frame["by"].iloc[0]) if len(frame) else "lesion"
    frame = frame[frame["label"].isin(class_names)]
    places = {name: place for place, name in enumerate(class_names)}
    groups, member = np.unique(frame["unit"].to_numpy(dtype=np.str_), return_inverse=True)
    counts = np.zeros((len(groups), len(class_names), len(class_names)), dtype=np.int64)
    where = (member, frame["label"].map(places).to_numpy(np.int64), frame["prediction"].map(places).to_numpy(np.int64))
    np.add.at(counts, where, 1)
    return GroupCounts(groups, counts, unit)


def class_scores(counts: npt.ArrayLike) -> dict[str, Floats]:
    """Judges each class of confusion matrices.

    Args:
        counts: [..., K, K], rows true.

    Returns:
        ``precision``, ``recall`` and ``f1``, each [..., K] in 0..1; 0 where nothing was predicted or labelled so
        (scikit-learn's ``zero_division=0``).
    """
    matrix = np.asarray(counts, dtype=np.float64)
    right = np.diagonal(matrix, axis1=-2, axis2=-1)
    predicted, labelled = matrix.sum(axis=-2), matrix.sum(axis=-1)
    return {
        "precision": _ratio(right, predicted),
        "recall": _ratio(right, labelled),
        "f1": _ratio(2 * right, predicted + labelled),
    }


def scores(counts: npt.ArrayLike, among: Sequence[int] | None = None) -> dict[Metric, Floats]:
    """Judges confusion matrices.

    Args:
        counts: [..., K, K], rows true.
        among: Classes that means over the classes are of; by default all, also those that do not occur.

    Returns:
        For each name of :data:`METRICS` values [...] in 0..1. ``f1_macro`` is the mean of the classes' F1,
        ``f1_paper`` the harmonic mean of macro precision and macro recall, which the paper's Table 2 prints.
    """
    matrix = np.asarray(counts, dtype=np.float64)
    chosen = list(range(matrix.shape[-1]) if among is None else among)
    classes = {name: values[..., chosen].mean(axis=-1) for name, values in class_scores(matrix).items()}
    precision, recall = classes["precision"], classes["recall"]
    return {
        "accuracy": _ratio(np.trace(matrix, axis1=-2, axis2=-1), matrix.sum(axis=(-2, -1))),
        "precision_macro": precision,
        "recall_macro": recall,
        "f1_macro": classes["f1"],
        "f1_paper": _ratio(2 * precision * recall, precision + recall),
    }


def draw_weights(strata: npt.NDArray[np.int64], resamples: int, seed: int | Sequence[int]) -> Floats:
    """Draws bootstrap resamples of groups, within each class as the splits were drawn.

    Of a class with n groups n - 1 are drawn and count n / (n - 1) times (Rao & Wu 1988): drawing n would make the
    variance too small by (n - 1) / n, which is much where a class has few.

    Args:
        strata: [L], class of each group.
        resamples: How many, B.
        seed: Of the drawing.

    Returns:
        [B, L], the weight of each group in each resample; a class keeps its weight. A class with a single group
        always has it: nothing is known of how it varies.
    """
    rng = np.random.default_rng(seed)
    weights = np.ones((resamples, len(strata)))
    for stratum in np.unique(strata):
        (members,) = np.nonzero(strata == stratum)
        count = len(members)
        if count > 1:
            drawn = rng.multinomial(count - 1, np.full(count, 1 / count), size=resamples)
            weights[:, members] = drawn * (count / (count - 1))
    return weights


def resampled(weights: Floats, counts: Counts) -> Floats:
    """Sums the groups' confusion matrices over each resample.

    Args:
        weights: [B, L].
        counts: [L, K, K].

    Returns:
        [B, K, K].
    """
    flat = counts.reshape(len(counts), -1).astype(np.float64)
    return np.asarray(weights @ flat).reshape(len(weights), *counts.shape[1:])


def percentile_interval(values: Floats, level: float = LEVEL) -> Interval:
    """Returns the percentile interval of bootstrap values [B] (Efron & Tibshirani 1993, ch. 13).

    Args:
        values: The statistic in each resample.
        level: Probability, 0..1.
    """
    if not len(values):
        return UNKNOWN
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def intervals(
    answers: GroupCounts, resamples: int, seed: int, level: float = LEVEL, among: Sequence[int] | None = None
) -> dict[Metric, Interval]:
    """Computes the interval of each metric over groups.

    Accuracy is a proportion and gets :func:`clustered_interval`. Means over the classes get the bootstrap over
    groups, widened where the intervals of the single classes, put together as if they were independent
    (:func:`mean_interval`), reach further: a bootstrap of three groups that are all right knows no doubt.

    Args:
        answers: By group.
        resamples: How many.
        seed: Of the drawing.
        level: Probability, 0..1.
        among: Classes that means over the classes are of; by default all.

    Returns:
        The interval of each metric of the pooled answers; NaN without an answer.
    """
    if not len(answers):
        return {metric: UNKNOWN for metric in METRICS}
    drawn = resampled(draw_weights(answers.strata, resamples, seed), answers.counts)
    booted = {metric: percentile_interval(values, level) for metric, values in scores(drawn, among).items()}
    points, single = class_scores(answers.total), class_intervals(answers, level)
    chosen = list(range(answers.total.shape[0]) if among is None else among)
    macro = {name: mean_interval(points[name][chosen], [single[name][k] for k in chosen]) for name in points}
    found: dict[Metric, Interval] = {
        "accuracy": clustered_interval(_right(answers.counts), answers.counts.sum(axis=(1, 2)), level),
        "precision_macro": booted["precision_macro"].joined(macro["precision"]),
        "recall_macro": booted["recall_macro"].joined(macro["recall"]),
        "f1_macro": booted["f1_macro"].joined(macro["f1"]),
    }
    # The harmonic mean grows with both.
    ends = zip(_ends(macro["precision"]), _ends(macro["recall"]), strict=True)
    low, high = (2 * one * other / (one + other) if one + other else 0.0 for one, other in ends)
    return found | {"f1_paper": booted["f1_paper"].joined(Interval(low, high))}


def class_intervals(answers: GroupCounts, level: float = LEVEL) -> dict[str, list[Interval]]:
    """Computes the intervals of each class's scores, as proportions with the group as the unit.

    Args:
        answers: By group.
        level: Probability, 0..1.

    Returns:
        K intervals for each of ``precision``, ``recall`` and ``f1``; NaN where nothing was predicted or labelled so.
    """
    counts = answers.counts
    right = np.diagonal(counts, axis1=1, axis2=2)
    predicted, labelled = counts.sum(axis=1), counts.sum(axis=2)
    classes = range(counts.shape[1])
    return {
        "precision": [clustered_interval(right[:, k], predicted[:, k], level) for k in classes],
        "recall": [clustered_interval(right[:, k], labelled[:, k], level) for k in classes],
        "f1": [f1_interval(right[:, k], (predicted + labelled - right)[:, k], level) for k in classes],
    }


def _right(counts: Counts) -> Counts:
    return np.asarray(np.trace(counts, axis1=1, axis2=2), dtype=np.int64)


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def sign_flip_test(differences: npt.NDArray[np.int64]) -> float:
    """Tests exactly whether two methods are right equally often, groups being the unit.

    If the methods are exchangeable, each group's difference could as well have the other sign. The p-value is the
    share of all sign assignments whose sum is as far from 0 as the observed one; all 2^L are counted, by adding up
    the distribution group by group. Where each group has one photograph this is McNemar's exact test; unlike it,
    it stays valid where photographs of a group, or repeats, are answered alike.

    Args:
        differences: int64 [L], right answers of one method minus those of the other.

    Returns:
        The two-sided p-value, 0..1.
    """
    sizes = np.abs(differences[differences != 0])
    chances = np.ones(1)
    for size in sizes:
        wider = np.zeros(len(chances) + size)
        wider[: len(chances)] += chances / 2
        wider[size:] += chances / 2
        chances = wider
    sums = 2 * np.arange(len(chances)) - sizes.sum()
    return min(1.0, float(chances[np.abs(sums) >= abs(differences.sum())].sum()))


def exchange_test(first: Counts, second: Counts, resamples: int, seed: int) -> dict[Metric, float]:
    """Tests whether two methods score alike, by exchanging their answers group by group at random.

    Args:
        first: int64 [L, K, K] of one method.
        second: The other's, of the same groups.
        resamples: Random exchanges.
        seed: Of the drawing.

    Returns:
        A two-sided p-value for each metric, at least 1 / (resamples + 1) (Phipson & Smyth 2010).
    """
    swaps = np.random.default_rng(seed).integers(0, 2, (resamples, len(first))).astype(np.float64)
    moved = resampled(swaps, second - first)
    one, other = scores(first.sum(axis=0) + moved), scores(second.sum(axis=0) - moved)
    seen, there = scores(first.sum(axis=0)), scores(second.sum(axis=0))
    # Sums of the same numbers in another order may differ in the last digit.
    return {
        metric: float(1 + (np.abs(one[metric] - other[metric]) >= abs(seen[metric] - there[metric]) - 1e-12).sum())
        / (resamples + 1)
        for metric in METRICS
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrects p-values for their number (Holm 1979: step-down, controls the family-wise error).

    Args:
        p_values: m p-values.

    Returns:
        The corrected ones, in the same order, at most 1.
    """
    order = np.argsort(p_values, kind="stable")
    steps = np.asarray(p_values, dtype=np.float64)[order] * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return [float(value) for value in corrected]


def _ratio(part: Floats, whole: Floats) -> Floats:
    return np.divide(part, whole, out=np.zeros(np.broadcast(part, whole).shape), where=np.asarray(whole) > 0)
