"""ROC, precision-recall, decision and calibration curves of each class against the rest."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kd_convnext.common.counting import counted
from kd_convnext.common.figures import PALETTE, grid_shape, wrapped
from kd_convnext.evaluation.discrimination import (
    Ranking,
    average_precision,
    precision_recall_curve,
    roc_area,
    roc_curve,
)
from kd_convnext.evaluation.operating import operating_points
from kd_convnext.evaluation.proportions import FEW, Interval, clustered_interval, digits, with_interval
from kd_convnext.evaluation.utility import decision_curve

_SIDE = 2.7
_BINS = 5


def class_panels(
    rankings: Sequence[tuple[str, Ranking]], draw: Callable[[Axes, Ranking], str], x: str, y: str, unit: str = "lesion"
) -> Figure:
    """Draws one panel a class.

    Args:
        rankings: Name and answers of each class.
        draw: Draws into the panel and returns what its title says beneath the class.
        x: Label of the horizontal axes.
        y: Label of the vertical axes.
        unit: What the groups of the rankings are.
    """
    rows, columns = grid_shape(len(rankings))
    figure = Figure(figsize=(_SIDE * columns + 0.6, (_SIDE + 0.5) * rows + 0.6), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(rankings) :]:
        panel.set_axis_off()
    for panel, (name, ranking) in zip(panels, rankings, strict=False):
        number = ranking.groups_of(True)
        marked = f"{counted(number, unit)}{' †' if number < FEW else ''}"
        said = draw(panel, ranking) if ranking.mixed else "only one side occurs"
        title = f"{wrapped(name, _SIDE - 0.6, 8)}\n{marked}\n{said}"
        panel.set_title(title, fontsize=8, parse_math=False)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    figure.supxlabel(x, fontsize=9)
    figure.supylabel(y, fontsize=9)
    return figure


def draw_roc(panel: Axes, ranking: Ranking) -> str:
    """Draws a ROC curve; returns its area with interval."""
    panel.plot((0, 1), (0, 1), color="grey", ls="--", lw=0.8)
    panel.plot(*roc_curve(ranking), color=PALETTE[0])
    points = operating_points(ranking)
    spans = [point.sensitivity.interval for point in points]
    _band(panel, [1 - point.specificity.value for point in points], spans)
    area = roc_area(ranking)
    return f"AUC {with_interval(area.value, area.interval, digits(ranking.groups_of(True)))}"


def draw_precision_recall(panel: Axes, ranking: Ranking) -> str:
    """Draws a precision-recall curve over the share of the class; returns its area with interval."""
    panel.axhline(float(ranking.positive.mean()), color="grey", ls="--", lw=0.8)
    recall, precision = precision_recall_curve(ranking)
    # The strictest threshold's precision holds from no recall on, as it does in the area.
    panel.step(np.append(0, recall), np.append(precision[:1], precision), where="pre", color=PALETTE[0])
    points = [point for point in operating_points(ranking) if point.called]
    spans = [point.precision.interval for point in (points[0], *points)]
    _band(panel, [0, *(point.sensitivity.value for point in points)], spans, steps=True)
    panel.set(xlim=(-0.03, 1.03), ylim=(0, 1.03))
    found = average_precision(ranking, 300)
    return f"AP {with_interval(found.value, found.interval, digits(ranking.groups_of(True)))}"


def draw_decision(panel: Axes, ranking: Ranking) -> str:
    """Draws the net benefit over thresholds, against acting on all and on none."""
    thresholds = np.linspace(0.01, 0.9, 90)
    top = float(ranking.positive.mean()) if ranking.prevalence is None else ranking.prevalence
    model, everyone = decision_curve(ranking.scores, ranking.positive, thresholds, top)
    panel.plot(thresholds, everyone, color=PALETTE[1], ls="--", lw=1)
    panel.axhline(0, color="black", lw=0.8)
    panel.plot(thresholds, model, color=PALETTE[0])
    panel.set_ylim(-0.35 * top, 1.1 * top)
    better = model > np.maximum(everyone, 0) + 1e-12
    return f"above both at {better.mean():.0%} of thresholds"


def draw_calibration(panel: Axes, ranking: Ranking) -> str:
    """Draws how often the class is there against its probability, in bins of equal numbers, with intervals."""
    panel.plot((0, 1), (0, 1), color="grey", ls="--", lw=0.8)
    order = np.argsort(ranking.scores, kind="stable")
    gap, total = 0.0, len(order)
    for part in np.array_split(order, min(_BINS, total)):
        _, member = np.unique(ranking.groups[part], return_inverse=True)
        span = clustered_interval(np.bincount(member, weights=ranking.positive[part]), np.bincount(member))
        mean, share = float(ranking.scores[part].mean()), float(ranking.positive[part].mean())
        arms = [[max(0.0, share - span.low)], [max(0.0, span.high - share)]]
        panel.errorbar(mean, share, yerr=arms, fmt="o", ms=4, color=PALETTE[0], capsize=2, lw=0.9)
        gap += abs(mean - share) * len(part) / total
    panel.set(xlim=(0, 1), ylim=(0, 1.03))
    return f"mean gap {gap:.{digits(ranking.groups_of(True))}f}"


def _band(panel: Axes, places: Sequence[float], spans: Sequence[Interval], *, steps: bool = False) -> None:
    """Shades intervals at the thresholds of a curve."""
    low, high = [span.low for span in spans], [span.high for span in spans]
    panel.fill_between(places, low, high, step="pre" if steps else None, color=PALETTE[0], alpha=0.18, lw=0)
