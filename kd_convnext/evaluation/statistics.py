"""Computes scores, bootstrap intervals and paired tests, with the lesion as the unit.

Photographs of one lesion resemble each other, and with repeated splits the same lesion is judged several times. So
nothing here treats two photographs of a lesion as independent: a lesion is drawn, or exchanged, with all its
photographs of all repeats. Everything goes by the confusion matrix of each lesion, int64 [L, K, K] (rows true).
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
class LesionCounts:
    """Confusion matrix of each lesion.

    Attributes:
        lesions: str [L], names, each once.
        counts: int64 [L, K, K], the confusion matrix of each lesion's photographs over all repeats, rows true.
    """

    lesions: npt.NDArray[np.str_]
    counts: Counts

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
        """int64 [L], the class most of the lesion's photographs have."""
        return np.asarray(self.counts.sum(axis=2).argmax(axis=1), dtype=np.int64)

    def per_class(self) -> npt.NDArray[np.int64]:
        """Counts lesions.

        Returns:
            int64 [K], lesions that have a photograph of the class.
        """
        return np.asarray((self.counts.sum(axis=2) > 0).sum(axis=0), dtype=np.int64)


def count_lesions(frame: pd.DataFrame, class_names: Sequence[str]) -> LesionCounts:
    """Counts answers by lesion.

    Args:
        frame: One row an answer: ``lesion``, ``label`` and ``prediction`` (names of classes).
        class_names: The K classes, in the order of the matrices.

    Returns:
        The counts, lesions sorted by name. Rows whose label is no class (unknown) count nowhere.
    """
    frame = frame[frame["label"].isin(class_names)]
    places = {name: place for place, name in enumerate(class_names)}
    lesions, member = np.unique(frame["lesion"].to_numpy(dtype=np.str_), return_inverse=True)
    counts = np.zeros((len(lesions), len(class_names), len(class_names)), dtype=np.int64)
    where = (member, frame["label"].map(places).to_numpy(np.int64), frame["prediction"].map(places).to_numpy(np.int64))
    np.add.at(counts, where, 1)
    return LesionCounts(lesions, counts)


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


def draw_weights(strata: npt.NDArray[np.int64], resamples: int, seed: int) -> Floats:
    """Draws bootstrap resamples of lesions, within each class as the splits were drawn.

    Of a class with n lesions n - 1 are drawn and count n / (n - 1) times (Rao & Wu 1988): drawing n would make the
    variance too small by (n - 1) / n, which is much where a class has few lesions.

    Args:
        strata: [L], class of each lesion.
        resamples: How many, B.
        seed: Of the drawing.

    Returns:
        [B, L], the weight of each lesion in each resample; a class keeps its weight. A class with a single lesion
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
    """Sums the lesions' confusion matrices over each resample.

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
    lesions: LesionCounts, resamples: int, seed: int, level: float = LEVEL, among: Sequence[int] | None = None
) -> dict[Metric, Interval]:
    """Computes the interval of each metric over lesions.

    Accuracy is a proportion and gets :func:`clustered_interval`. Means over the classes get the bootstrap over
    lesions, widened where the intervals of the single classes, put together as if they were independent
    (:func:`mean_interval`), reach further: a bootstrap of three lesions that are all right knows no doubt.

    Args:
        lesions: The answers.
        resamples: How many.
        seed: Of the drawing.
        level: Probability, 0..1.
        among: Classes that means over the classes are of; by default all.

    Returns:
        The interval of each metric of the pooled answers; NaN without a lesion.
    """
    if not len(lesions.lesions):
        return {metric: UNKNOWN for metric in METRICS}
    drawn = resampled(draw_weights(lesions.strata, resamples, seed), lesions.counts)
    booted = {metric: percentile_interval(values, level) for metric, values in scores(drawn, among).items()}
    points, single = class_scores(lesions.total), class_intervals(lesions, level)
    chosen = list(range(lesions.total.shape[0]) if among is None else among)
    macro = {name: mean_interval(points[name][chosen], [single[name][k] for k in chosen]) for name in points}
    found: dict[Metric, Interval] = {
        "accuracy": clustered_interval(_right(lesions.counts), lesions.counts.sum(axis=(1, 2)), level),
        "precision_macro": booted["precision_macro"].joined(macro["precision"]),
        "recall_macro": booted["recall_macro"].joined(macro["recall"]),
        "f1_macro": booted["f1_macro"].joined(macro["f1"]),
    }
    # The harmonic mean grows with both.
    ends = zip(_ends(macro["precision"]), _ends(macro["recall"]), strict=True)
    low, high = (2 * one * other / (one + other) if one + other else 0.0 for one, other in ends)
    return found | {"f1_paper": booted["f1_paper"].joined(Interval(low, high))}


def class_intervals(lesions: LesionCounts, level: float = LEVEL) -> dict[str, list[Interval]]:
    """Computes the intervals of each class's scores, as proportions with the lesion as the unit.

    Args:
        lesions: The answers.
        level: Probability, 0..1.

    Returns:
        K intervals for each of ``precision``, ``recall`` and ``f1``; NaN where nothing was predicted or labelled so.
    """
    counts = lesions.counts
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
    """Tests exactly whether two methods are right equally often, lesions being the unit.

    If the methods are exchangeable, each lesion's difference could as well have the other sign. The p-value is the
    share of all sign assignments whose sum is as far from 0 as the observed one; all 2^L are counted, by adding up
    the distribution lesion by lesion. Where each lesion has one photograph this is McNemar's exact test; unlike it,
    it stays valid where photographs of a lesion, or repeats, are answered alike.

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
    """Tests whether two methods score alike, by exchanging their answers lesion by lesion at random.

    Args:
        first: int64 [L, K, K] of one method.
        second: The other's, of the same lesions.
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
