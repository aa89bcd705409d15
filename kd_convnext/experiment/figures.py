"""The figures of an experiment, from its numbers."""

from collections.abc import Callable
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from kd_convnext.experiment.analysis import Analysis
from kd_convnext.experiment.comparisons import Comparison
from kd_convnext.experiment.results import Arm
from kd_convnext.experiment.statistics import Interval, Metric, class_intervals, class_scores, scores
from kd_convnext.experiment.tables import SHORT

_BARS: dict[str, Metric] = {
    "Accuracy": "accuracy",
    "Precision": "precision_macro",
    "Recall": "recall_macro",
    "F1": "f1_macro",
}


@dataclass(frozen=True, eq=False)
class NamedFigure:
    """A figure and what to say of it.

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
        *(_methods, _differences, _confusion, _classes, _reliability, _curves),
    )
    with mpl.rc_context({"text.parse_math": False}):
        return [figure for make in makers for figure in make(analysis)]


def _methods(analysis: Analysis) -> list[NamedFigure]:
    from kd_convnext.plotting_experiment import Bar, score_bars

    arms = [arm for arm in analysis.methods if len(arm.answers)]
    if not arms:
        return []
    groups = {}
    for arm in arms:
        values, found = scores(arm.lesions.total), analysis.intervals[arm]
        groups[arm.title] = {
            name: Bar(float(values[metric]), _ends(found[metric]), tuple(arm.values(metric)))
            for name, metric in _BARS.items()
        }
    caption = (
        "Each method on test (the paper's Fig. 7): bars are all repeats together with 95 % intervals by bootstrap over "
        "lesions, points the single repeats; precision, recall and F1 are means over the classes."
    )
    return [NamedFigure("methods", caption, score_bars(groups))]


def _differences(analysis: Analysis) -> list[NamedFigure]:
    families = {"differences": analysis.comparisons, "super_resolution": analysis.resolution}
    return [_difference(name, found) for name, found in families.items() if found]


def _difference(name: str, comparisons: tuple[Comparison, ...]) -> NamedFigure:
    from kd_convnext.plotting_experiment import difference_plot

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
        "over lesions; the thin line is corrected for the number of comparisons."
    )
    return NamedFigure(name, caption, difference_plot(rows, f"difference in {SHORT[metric]} from {other}"))


def _confusion(analysis: Analysis) -> list[NamedFigure]:
    from kd_convnext.plotting import confusion_matrix

    arm = _tested_best(analysis)
    if arm is None:
        return []
    total, of = arm.lesions.total, f"of {arm.title} (the paper's Fig. 8), all repeats together; rows are true classes"
    counts = confusion_matrix(total, arm.class_names, normalise=None)
    rates = confusion_matrix(total, arm.class_names)
    return [
        NamedFigure("confusion_counts", f"Confusion matrix in counts, {of}.", counts),
        NamedFigure("confusion_rates", f"Confusion matrix in shares of the true class, {of}.", rates),
    ]


def _classes(analysis: Analysis) -> list[NamedFigure]:
    from kd_convnext.plotting_experiment import Bar, score_bars

    arm = _tested_best(analysis)
    if arm is None:
        return []
    values = class_scores(arm.lesions.total)
    found = class_intervals(arm.lesions, analysis.settings.resamples, analysis.settings.seed)
    behind = arm.lesions.per_class()
    groups = {
        f"{name}\n({behind[k]} lesions)": {
            score.capitalize(): Bar(float(values[score][k]), _ends(found[score][k])) for score in values
        }
        for k, name in enumerate(arm.class_names)
    }
    caption = f"Precision, recall and F1 of each class, {arm.title} (the paper's Table 3), with 95 % intervals."
    return [NamedFigure("per_class", caption, score_bars(groups))]


def _reliability(analysis: Analysis) -> list[NamedFigure]:
    from kd_convnext.evaluation import Evaluation
    from kd_convnext.plotting import reliability_diagram

    arm = _tested_best(analysis)
    if arm is None:
        return []
    pooled = Evaluation(
        part="test",
        index=np.arange(len(arm.answers)),
        labels=pd.Categorical(arm.answers["label"], categories=list(arm.class_names)).codes.astype(np.int64),
        probabilities=arm.answers[[f"prob_{name}" for name in arm.class_names]].to_numpy(np.float64),
        class_names=arm.class_names,
    )
    caption = f"How often {arm.title} is right against how sure it was, all repeats together."
    return [NamedFigure("reliability", caption, reliability_diagram(pooled))]


def _curves(analysis: Analysis) -> list[NamedFigure]:
    """Draws the mean curves over the repeats, and the losses of the best."""
    from kd_convnext.plotting import method_curves, training_curves

    frames = {arm.title: curves for arm in analysis.methods if (curves := _metrics_of(arm)) is not None}
    found = []
    if any("val/f1_macro" in frame for frame in frames.values()):
        caption = "Macro F1 on validation over the epochs, mean of the repeats."
        found.append(NamedFigure("validation_curves", caption, method_curves(frames, "val/f1_macro")))
    best = frames.get(analysis.best.title) if analysis.best else None
    if analysis.best and best is not None:
        caption = f"Training of {analysis.best.title}, mean of the repeats."
        found.append(NamedFigure("training_curves", caption, training_curves(best)))
    return found


def _metrics_of(arm: Arm) -> pd.DataFrame | None:
    paths = [result.run.path / "metrics.csv" for result in arm.results]
    frames = [pd.read_csv(path) for path in paths if path.exists()]
    return pd.concat(frames, ignore_index=True) if frames else None


def _tested_best(analysis: Analysis) -> Arm | None:
    return analysis.best if analysis.best is not None and len(analysis.best.answers) else None


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high
