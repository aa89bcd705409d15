"""Draws the figures of an experiment."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kd_convnext.common.counting import counted
from kd_convnext.common.figures import PALETTE, label_ticks, put_caption, wrapped
from kd_convnext.common.tables import read_numbers
from kd_convnext.evaluation.comparisons import Comparison
from kd_convnext.evaluation.direction import Choice
from kd_convnext.evaluation.proportions import FEW, Interval
from kd_convnext.evaluation.statistics import Metric, class_intervals, class_scores, scores
from kd_convnext.experiment.report.analysis import Analysis, teacher_of
from kd_convnext.experiment.report.descriptions import network_words, teacher_files
from kd_convnext.experiment.report.learning import learning_curve, learning_points
from kd_convnext.experiment.report.results import Arm
from kd_convnext.experiment.report.tables import MARK, SHORT
from kd_convnext.experiment.report.wishes import completed

_BARS: dict[str, Metric] = {
    "Accuracy": "accuracy",
    "Precision": "precision_macro",
    "Recall": "recall_macro",
    "F1": "f1_macro",
}


@dataclass(frozen=True, eq=False)
class NamedFigure:
    """A figure with its caption.

    Attributes:
        name: Of its files.
        caption: What it shows, in words: also what a reader who cannot see it is told.
        figure: The drawing.
    """

    name: str
    caption: str
    figure: Figure


def all_figures(analysis: Analysis) -> list[NamedFigure]:
    """Draws every figure the cells allow, in reading order.

    Args:
        analysis: The numbers.

    Returns:
        The figures. Names of classes and methods are drawn as they are, a dollar sign too.
    """
    makers: tuple[Callable[[Analysis], list[NamedFigure]], ...] = (
        *(_methods, _differences, _classes, _confusion, _clinical, _reliability, _learning, _curves),
    )
    with mpl.rc_context({"text.parse_math": False}):
        found = [figure for make in makers for figure in make(analysis)]
        for one in found:
            # A figure that is taken out of its page must still say what it shows.
            put_caption(one.figure, one.caption)
        return found


def _methods(analysis: Analysis) -> list[NamedFigure]:
    arms = [arm for arm in analysis.methods if len(arm.answers)]
    if not arms:
        return []
    groups = {}
    for arm in arms:
        values, found = scores(arm.counts.total), analysis.intervals[arm]
        groups[arm.title] = {
            name: Bar(float(values[metric]), _ends(found[metric]), tuple(arm.values(metric)))
            for name, metric in _BARS.items()
        }
    most = max(arms, key=lambda arm: arm.counts.photographs)
    like = " (as the paper's Fig. 7)" if analysis.of_family("rival") else ""
    several = any(len(arm.results) > 1 for arm in arms)
    repeats = ": bars are all repeats together, points the single ones" if several else ""
    caption = (
        f"Each method{like} with 95 % intervals {most.counts.by}{repeats}; "
        f"precision, recall and F1 are means over the classes. {_tested(most)}"
    )
    return [NamedFigure("methods", caption, score_bars(groups))]


def _differences(analysis: Analysis) -> list[NamedFigure]:
    families = {"differences": analysis.comparisons, "super_resolution": analysis.resolution}
    return [_difference(name, found) for name, found in families.items() if found]


def _difference(name: str, comparisons: tuple[Comparison, ...]) -> NamedFigure:
    metric: Metric = "f1_macro"
    against = {found.against for found in comparisons}
    rows = {}
    for found in comparisons:
        one = found.differences[metric]
        label = found.title if len(against) == 1 else f"{found.title} against {found.against}"
        rows[label] = (one.value, _ends(one.interval), _ends(one.corrected))
    other = next(iter(against)) if len(against) == 1 else "the method's own setting"
    caption = (
        f"Difference in {SHORT[metric]} from {other} on the same photographs, with 95 % intervals by paired bootstrap "
        f"over {comparisons[0].unit}s; the thin line is corrected for the number of comparisons. Test part, judged per "
        "photograph: "
        f"{counted(max(found.photographs for found in comparisons), 'answer')} about "
        f"{counted(max(found.groups for found in comparisons), comparisons[0].unit)} at most."
    )
    return NamedFigure(name, caption, difference_plot(rows, f"difference in {SHORT[metric]} from {other}"))


def _confusion(analysis: Analysis) -> list[NamedFigure]:
    from kd_convnext.runs.figures import confusion_matrix

    arm = _tested_best(analysis)
    if arm is None:
        return []
    drawn = confusion_matrix(arm.counts.total, arm.class_names)
    caption = f"Confusion matrix, rows are true classes: counts and shares of the row. {_tested(arm)} {_model(arm)}"
    return [NamedFigure("confusion", caption, drawn)]


def _tested(arm: Arm) -> str:
    """Describes what an arm was evaluated on: part, unit, number."""
    repeats = len(arm.results)
    over = "" if repeats == 1 else f" in {repeats} repeats"
    return (
        f"Test part, judged per photograph: {counted(arm.counts.photographs, 'answer')}{over} about "
        f"{counted(len(arm.counts), arm.counts.unit)}."
    )


def _model(arm: Arm) -> str:
    return f"{arm.title} ({network_words(arm)})."


def _classes(analysis: Analysis) -> list[NamedFigure]:
    arm = _tested_best(analysis)
    if arm is None:
        return []
    values = class_scores(arm.counts.total)
    found = class_intervals(arm.counts)
    behind = arm.counts.per_class()
    groups = {
        f"{name}\n({counted(behind[k], arm.counts.unit)}{f' {MARK}' if behind[k] < FEW else ''})": {
            score.capitalize(): Bar(float(values[score][k]), _ends(found[score][k])) for score in values
        }
        for k, name in enumerate(arm.class_names)
    }
    caption = (
        f"Precision, recall and F1 of each class with 95 % intervals {arm.counts.by} ({MARK} fewer than {FEW} "
        f"{arm.counts.unit}s). {_tested(arm)} {_model(arm)}"
    )
    return [NamedFigure("per_class", caption, score_bars(groups))]


def _reliability(analysis: Analysis) -> list[NamedFigure]:
    from kd_convnext.evaluation.answers import Evaluation
    from kd_convnext.runs.figures import reliability_diagram

    arm = _tested_best(analysis)
    if arm is None:
        return []
    pooled = Evaluation(
        part="test",
        index=np.arange(len(arm.answers)),
        labels=pd.Index(list(arm.class_names)).get_indexer(pd.Index(arm.answers["label"])).astype(np.int64),
        probabilities=arm.answers[[f"prob_{name}" for name in arm.class_names]].to_numpy(np.float64),
        class_names=arm.class_names,
    )
    caption = f"Calibration: how often answers are right against how sure they are. {_tested(arm)} {_model(arm)}"
    return [NamedFigure("reliability", caption, reliability_diagram(pooled))]


def _clinical(analysis: Analysis) -> list[NamedFigure]:
    """Draws each class of the best method against the rest."""
    from kd_convnext.experiment.report import clinical_figures as drawing
    from kd_convnext.experiment.report.clinical import ranking_of, shares_of

    arm = _tested_best(analysis)
    if arm is None:
        return []
    known = completed(analysis.settings.wishes.prevalence, arm.class_names)
    shares = shares_of(arm, known)
    rankings = [(name, replace(ranking_of(arm, name), prevalence=shares[name])) for name in arm.class_names]
    listed = ", ".join(f"{name} {share:.3g}" for name, share in known.items())
    tested = f"the tested {arm.counts.unit}s"
    rest = "" if len(known) == len(arm.class_names) else f", else that of {tested}"
    at = f"{listed}{rest}" if known else f"of {tested}"
    kinds = (
        ("roc", drawing.draw_roc, "1 - specificity", "sensitivity", _ROC),
        (
            "precision_recall",
            drawing.draw_precision_recall,
            "recall",
            "precision",
            "Precision over recall of each class, shaded: exact 95 % intervals of the precision, {by}",
        ),
        ("decision", drawing.draw_decision, "threshold probability", "net benefit", _DECISION),
        ("calibration", drawing.draw_calibration, "probability of the class", "share of the class", _CALIBRATED),
    )
    return [
        NamedFigure(
            name,
            f"{says.format(by=arm.counts.by, at=at)}. {_tested(arm)} {_model(arm)}",
            drawing.class_panels(rankings, draw, x, y, arm.counts.unit),
        )
        for name, draw, x, y, says in kinds
    ]


_ROC = (
    "ROC curve of each class against the rest, shaded: exact 95 % intervals of the sensitivity at each threshold, {by}"
)
_DECISION = (
    "Decision curve of each class: net benefit (true positives a case) of acting on the model (solid), on every case "
    "(dashed) and on none (zero), at the prevalence {at}"
)
_CALIBRATED = "Calibration of each class: five groups of equal size by probability, 95 % intervals {by}"


def _learning(analysis: Analysis) -> list[NamedFigure]:
    points = learning_points(analysis)
    if not points:
        return []
    most = max((point.arm for point in points), key=lambda arm: arm.counts.photographs)
    caption = f"Macro F1 against the number of lesions trained on, 95 % intervals {most.counts.by}. {_tested(most)}"
    return [NamedFigure("learning_curve", caption, learning_curve(points))]


def _curves(analysis: Analysis) -> list[NamedFigure]:
    """Draws the mean curves over the repeats, and the losses of the best."""
    from kd_convnext.runs.figures import method_curves, training_curves

    frames = {arm.title: curves for arm in analysis.methods if (curves := _metrics_of(arm)) is not None}
    choices = {arm.title: Choice.of(arm.results[0].config) for arm in analysis.methods}
    ringed = "mean of the repeats, ringed where the mean of the number that chooses the epoch is best"
    found = []
    if any("val/f1_macro" in frame for frame in frames.values()):
        caption = f"Macro F1 over the epochs, validation part, judged per photograph: {ringed}."
        drawn = method_curves(frames, "val/f1_macro", choices=choices)
        found.append(NamedFigure("validation_curves", caption, drawn))
    timed = _timed(analysis.methods, frames)
    if any("val/f1_macro" in frame for frame in timed.values()):
        caption = (
            f"Macro F1 over the minutes of a cell, validation part, judged per photograph: {ringed}; a student's "
            "minutes begin where its teacher's end."
        )
        drawn = method_curves(timed, "val/f1_macro", axis="minutes", choices=choices)
        found.append(NamedFigure("validation_minutes", caption, drawn))
    best = frames.get(analysis.best.title) if analysis.best else None
    if analysis.best and best is not None:
        caption = f"Training and validation part over the epochs, mean of the repeats. {_model(analysis.best)}"
        drawn = training_curves(best, choice=choices[analysis.best.title])
        found.append(NamedFigure("training_curves", caption, drawn))
    return found


def _timed(methods: Sequence[Arm], frames: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Adds the minutes to the curves of the methods whose own and whose teacher's minutes are known."""
    found = {}
    for arm in methods:
        teacher = teacher_of(arm, methods)
        taught = teacher_files(arm.results[0].config)
        before = teacher.minutes if teacher is not None else math.nan if taught else 0.0
        if arm.title in frames and math.isfinite(before + arm.minutes):
            epochs = frames[arm.title]["epoch"] + 1
            found[arm.title] = frames[arm.title].assign(minutes=before + arm.minutes * epochs / epochs.max())
    return found


def _metrics_of(arm: Arm) -> pd.DataFrame | None:
    paths = [result.run.path / "metrics.csv" for result in arm.results]
    frames = [read_numbers(path) for path in paths if path.exists()]
    return pd.concat(frames, ignore_index=True) if frames else None


def _tested_best(analysis: Analysis) -> Arm | None:
    return analysis.best if analysis.best is not None and len(analysis.best.answers) else None


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


Span = tuple[float, float]


@dataclass(frozen=True)
class Bar:
    """One bar with its interval.

    Attributes:
        value: Its height, 0..1.
        interval: Low and high end of the 95 % interval.
        repeats: The single repeats' values, drawn as points.
    """

    value: float
    interval: Span
    repeats: Sequence[float] = ()


_UPRIGHT = 8
"""Groups of bars that stand side by side; more lie below each other."""


def score_bars(groups: Mapping[str, Mapping[str, Bar]], label: str = "score") -> Figure:
    """Draws groups of bars with intervals: methods and their metrics (the paper's Fig. 7), classes and their scores.

    Args:
        groups: For each group, in order, its bars by name; every group has the same names.
        label: Of the vertical axis.

    Returns:
        The figure; single repeats are points on the bars. More than eight groups lie, one row each: side by side they
        would be too small in a page.
    """
    names = list(next(iter(groups.values()), {}))
    lying = len(groups) > _UPRIGHT
    each = max(0.4, 0.2 * len(names)) if lying else max(1.25, 0.3 * len(names))
    size = (8.0, 1.6 + each * len(groups)) if lying else (max(6.4, 2.0 + each * len(groups)), 4.4)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(names))
    draw, thick, error = (axes.barh, "height", "xerr") if lying else (axes.bar, "width", "yerr")
    for place, name in enumerate(names):
        bars = [group[name] for group in groups.values()]
        at = np.arange(len(groups)) + width * (place - (len(names) - 1) / 2)
        heights = np.array([bar.value for bar in bars])
        ends = np.array([bar.interval for bar in bars]).T
        # A percentile interval need not hold its point estimate; the bars' arms must not turn round.
        arms = np.nan_to_num(np.clip(np.stack([heights - ends[0], ends[1] - heights]), 0, None))
        look: dict[str, Any] = {"color": PALETTE[place % len(PALETTE)], "alpha": 0.8, thick: 0.9 * width, error: arms}
        draw(at, heights, label=name, capsize=2, error_kw={"lw": 0.9}, **look)
        for x, bar in zip(at, bars, strict=True):
            points = np.full(len(bar.repeats), x), bar.repeats
            axes.plot(*(points[::-1] if lying else points), "k.", markersize=3, alpha=0.6)
            if math.isnan(bar.interval[0]):  # nothing is known of it: no score of 0
                where: dict[str, Any] = {"ha": "left", "va": "center"} if lying else {"ha": "center", "va": "bottom"}
                axes.text(0.01 if lying else x, x if lying else 0.01, "-", **where)
    if lying:
        label_ticks(axes.yaxis, [wrapped(name, 2.4) for name in groups], each)
        axes.set(xlim=(0, 1.02), xlabel=label, ylim=(len(groups) - 0.5, -0.5))
    else:
        room = (figure.get_figwidth() - 1.2) / max(1, len(groups))
        figure.set_figheight(4.4 + label_ticks(axes.xaxis, list(groups), room))
        axes.set(ylim=(0, 1.02), ylabel=label)
    axes.grid(axis="x" if lying else "y", alpha=0.3)
    axes.set_axisbelow(True)
    if names:
        axes.legend(ncols=len(names), loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    return figure


def difference_plot(differences: Mapping[str, tuple[float, Span, Span]], label: str) -> Figure:
    """Draws differences from a baseline with their intervals, one row each, around the line of no difference.

    Args:
        differences: By name: the difference, its 95 % interval, and the interval corrected for how many there are.
        label: Of the horizontal axis.

    Returns:
        The figure; the corrected interval is the thin line.
    """
    figure = Figure(figsize=(8.0, 1.6 + 0.5 * max(1, len(differences))), layout="constrained")
    axes = figure.subplots()
    for row, (value, plain, corrected) in enumerate(differences.values()):
        axes.plot(corrected, (row, row), color=PALETTE[0], lw=1, label="corrected" if row == 0 else None)
        axes.plot(plain, (row, row), color=PALETTE[0], lw=4, alpha=0.6, label="95 % interval" if row == 0 else None)
        axes.plot(value, row, "o", color="black", markersize=4)
    axes.axvline(0, color="grey", linestyle="--", lw=1)
    label_ticks(axes.yaxis, [wrapped(name, 2.4) for name in differences], 0.5)
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    if differences:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure
