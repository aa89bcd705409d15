"""Tabulates the best method for clinicians: each class against the rest, units, subgroups."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from kd_convnext.common.tables import read_table
from kd_convnext.data.manifest.further import join_further
from kd_convnext.evaluation.discrimination import Ranking, average_precision, roc_area
from kd_convnext.evaluation.proportions import FEW, Interval, clustered_interval, digits, with_interval
from kd_convnext.evaluation.statistics import GroupCounts, count_groups, intervals, scores
from kd_convnext.evaluation.utility import predictive_intervals, predictive_values
from kd_convnext.experiment.report.analysis import Analysis
from kd_convnext.experiment.report.results import Arm
from kd_convnext.experiment.report.strata import SHARPNESS, SIZE, sharpnesses, sides, thirds
from kd_convnext.experiment.report.tables import MARK, Table
from kd_convnext.experiment.report.wishes import columns_of, completed


def shares_of(arm: Arm, prevalence: Mapping[str, float]) -> dict[str, float]:
    """Finds the share of each class, 0..1: where the model is to be used if that is known, else of the tested groups.

    Args:
        arm: The method.
        prevalence: The shares that are known; of the only other class it is what they leave.
    """
    behind = arm.counts.per_class()
    tested = (behind / max(1, behind.sum())).tolist()
    return dict(zip(arm.class_names, tested, strict=True)) | completed(prevalence, arm.class_names)


def ranking_of(arm: Arm, name: str) -> Ranking:
    """Ranks a method's answers by the probability of one class."""
    answers = arm.answers
    _, groups = np.unique(answers["unit"].to_numpy(dtype=np.str_), return_inverse=True)
    positive = (answers["label"] == name).to_numpy(np.bool_)
    return Ranking(answers[f"prob_{name}"].to_numpy(np.float64), positive, groups.astype(np.int64))


def one_against_rest(analysis: Analysis, prevalence: Mapping[str, float]) -> Table | None:
    """Makes the table of areas, sensitivity, specificity and predictive values of each class.

    Args:
        analysis: The numbers.
        prevalence: Share of classes where the model is to be used; by default their share of the tested groups.
    """
    arm = analysis.best
    if arm is None or not len(arm.answers):
        return None
    answers, unit = arm.counts, arm.counts.unit
    behind, shares, known = answers.per_class(), shares_of(arm, prevalence), completed(prevalence, arm.class_names)
    rows = []
    for k, name in enumerate(arm.class_names):
        places, share = digits(int(behind[k])), shares[name]
        ranking = ranking_of(arm, name)
        area, precision = roc_area(ranking), average_precision(ranking, 500, analysis.settings.seed)
        (seen, seen_span), (spared, spared_span) = _rates(answers, k)
        values = predictive_values(seen, spared, share)
        spans = predictive_intervals(seen_span, spared_span, share)
        cells = [
            with_interval(area.value, area.interval, places),
            with_interval(precision.value, precision.interval, places),
            with_interval(seen, seen_span, places),
            with_interval(spared, spared_span, places),
            f"{share:.3f}{'' if name in known else ' (test)'}",
            *(with_interval(value, span, places) for value, span in zip(values, spans, strict=True)),
        ]
        rows.append((name, f"{behind[k]} {MARK}" if behind[k] < FEW else str(behind[k]), *cells))
    rates = ("AUC", "Average precision", "Sensitivity", "Specificity", "Prevalence", "PPV", "NPV")
    note = (
        f"Each class against the rest, per photograph, {arm.title}; the most probable class answers. 95 % intervals "
        f"{answers.by}: AUC by DeLong et al. (1988) with clusters (Obuchowski 1997), average precision by percentile "
        f"bootstrap; with fewer than ten {unit}s, or where the ranking has no mistake, by Newcombe (2006) and Boyd et "
        "al. (2013); sensitivity and specificity exact; predictive values at the prevalence, taken as known (that "
        "of the test part unless --prevalence says another). "
        f"{MARK} fewer than {FEW} {unit}s: these figures say little."
    )
    return Table("Each class against the rest", ("Class", answers.head, *rates), tuple(rows), note)


def by_unit(analysis: Analysis) -> Table | None:
    """Makes the table of the best method judged per photograph, per lesion and, where known, per patient."""
    arm = analysis.best
    if arm is None or not len(arm.answers):
        return None
    answers = arm.answers
    patients = _patients(arm)
    units = {"photograph": answers["lesion"], "lesion": answers["lesion"]}
    if patients is not None:
        units["patient"] = patients.where(patients != "", answers["lesion"])
    rows = []
    for unit, groups in units.items():
        # Files of earlier versions know of no patients: what is judged is then the unit.
        known = answers.assign(unit=groups) if arm.counts.unit == "lesion" else answers
        judged = known if unit == "photograph" else _merged(known.assign(lesion=groups), arm.class_names)
        counts = count_groups(judged, arm.class_names)
        rows.append((f"per {unit}", str(counts.photographs), *_scores(counts, analysis)))
    others = ", the last row's by patient" if patients is not None and arm.counts.unit == "lesion" else ""
    note = (
        f"{arm.title}. Per lesion or patient the mean probability over its photographs in a repeat answers; one whose "
        f"photographs have several labels counts in none. 95 % intervals {arm.counts.by}{others}."
    )
    if patients is None:
        lost = not all(result.run.split.is_file() for result in arm.results)
        note += " No split.csv is at hand to name patients." if lost else " The photographs name no patients."
    return Table("Judged per photograph, lesion and patient", ("Unit", "Answers", *_HEADS), tuple(rows), note)


def subgroups(analysis: Analysis, columns: tuple[str, ...]) -> list[Table]:
    """Makes a table for each extra column of the manifest, and for thirds by size, where regions are marked.

    Args:
        analysis: The numbers.
        columns: Names of columns, such as ``site`` and ``device``, or ``sharpness``, measured in the photographs.

    Raises:
        ConfigError: The manifest of a run is not there, or has no such column.
    """
    arm = analysis.best
    if arm is None or not len(arm.answers):
        return []
    measured = {SIZE: thirds(sides(arm.answers), "px")}
    if SHARPNESS in columns:
        measured[SHARPNESS] = thirds(sharpnesses(arm), "")
    named = tuple(column for column in columns if column not in measured)
    answers = _with_columns(arm, named) if named else arm.answers
    answers = answers.assign(**{name: values.to_numpy() for name, values in measured.items()})
    found, unit = [], arm.counts.unit
    for column in (*named, *measured):
        if column in measured and not (answers[column] != "").any():
            continue
        rows = []
        for value, part in answers.groupby(column, sort=True):
            counts = count_groups(part, arm.class_names)
            number = len(counts)
            behind = f"{number} {MARK}" if number < FEW else str(number)
            # Where a subgroup lacks a class, a mean over all classes would tell of that and not of the answers.
            present = counts.occurring
            sizes = (behind, str(counts.photographs), f"{len(present)} of {len(arm.class_names)}")
            rows.append((str(value) or "(empty)", *sizes, *_scores(counts, analysis, present)))
        note = (
            f"{arm.title}, per photograph; macro means are over the classes that occur in the subgroup: compare them "
            f"only where these are alike. 95 % intervals {arm.counts.by}. {MARK} fewer than {FEW} {unit}s."
        )
        title = _MEASURED.get(column, f"By {column}")
        found.append(Table(title, (column, arm.counts.head, "Photographs", "Classes", *_HEADS), tuple(rows), note))
    return found


_MEASURED = {SIZE: "By size of the region", SHARPNESS: "By sharpness of the region (variance of the Laplacian)"}
_HEADS = ("Accuracy", "Macro recall", "Macro F1")


def _scores(counts: GroupCounts, analysis: Analysis, among: Sequence[int] | None = None) -> tuple[str, ...]:
    values = scores(counts.total, among)
    spans = intervals(counts, analysis.settings.resamples, analysis.settings.seed, among=among)
    places = digits(len(counts))
    names = ("accuracy", "recall_macro", "f1_macro")
    return tuple(with_interval(float(values[name]), spans[name], places) for name in names)  # type: ignore[index]


def _rates(answers: GroupCounts, place: int) -> tuple[tuple[float, Interval], tuple[float, Interval]]:
    """Sensitivity and specificity of one class, each with its interval by group."""
    counts = answers.counts
    labelled, predicted = counts.sum(axis=2), counts.sum(axis=1)
    right, cases = counts[:, place, place], labelled[:, place]
    others = counts.sum(axis=(1, 2)) - cases
    spared = others - (predicted[:, place] - right)
    return (_rate(right, cases), _rate(spared, others))


def _rate(hits: npt.NDArray[np.int64], asked: npt.NDArray[np.int64]) -> tuple[float, Interval]:
    """A share with its interval, both NaN where nothing was asked."""
    total = int(asked.sum())
    return float(hits.sum() / total) if total else math.nan, clustered_interval(hits, asked)


def _merged(answers: pd.DataFrame, names: tuple[str, ...]) -> pd.DataFrame:
    """Merges the predictions of each group and repeat by the mean probability."""
    columns = [f"prob_{name}" for name in names]
    grouped = answers.groupby(["lesion", "repeat"])
    merged = grouped[columns].mean().reset_index()
    merged[["label", "unit", "by"]] = grouped[["label", "unit", "by"]].first().to_numpy()
    places = merged[columns].to_numpy().argmax(axis=1)
    merged["prediction"] = np.array(names, dtype=object)[places]
    return merged[(grouped["label"].nunique() == 1).to_numpy()]


def _patients(arm: Arm) -> "pd.Series[str] | None":
    """Finds the patient of each answer in the split files; None where none is named."""
    found: dict[str, str] = {}
    for result in arm.results:
        if result.run.split.is_file():
            split = read_table(result.run.split, ("image",))
            if "patient_id" in split:
                found |= dict(zip(split["image"], split["patient_id"], strict=True))
    patients = arm.answers["image"].map(lambda image: found.get(image, ""))
    return patients if (patients != "").any() else None


def _with_columns(arm: Arm, columns: tuple[str, ...]) -> pd.DataFrame:
    """Joins columns of the manifests to the predictions."""
    parts = []
    for result in arm.results:
        found = columns_of(result, columns)
        known: npt.NDArray[np.bool_] = (arm.answers["repeat"] == result.record.repeat).to_numpy(np.bool_)
        further = [name for name in columns if name not in arm.answers]
        parts.append(join_further(arm.answers[known], found, further))
    return pd.concat(parts, ignore_index=True)
