"""Figures of calibration, abstention and explanation. Each function returns a matplotlib ``Figure``."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from kd_convnext.inference.explanation import Explanation


def risk_coverage(
    confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_], answered: npt.NDArray[np.bool_]
) -> Figure:
    """Draws what abstaining buys: the error among the answers given, over the share of answers given.

    Args:
        confidence: [N], highest probability of each case.
        right: [N], whether its most probable class is the true one.
        answered: [N], whether the abstention rule lets the answer pass.

    Returns:
        The figure: the curve of abstaining by confidence alone (Geifman, El-Yaniv 2017), and the rule as a point. The
        title gives the area under the curve.
    """
    coverage, risk = risk_coverage_curve(confidence, right)
    figure = Figure(figsize=(5.0, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(coverage, risk, label="abstaining by confidence")
    if answered.any():
        axes.plot(answered.mean(), 1 - right[answered].mean(), "o", color="tab:red", label="prediction set and gate")
    axes.set(xlim=(0, 1.02), ylim=(0, None), xlabel="share of lesions answered", ylabel="error among answers")
    axes.set_title(f"area under the curve {risk.mean():.3f}")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def risk_coverage_curve(
    confidence: npt.NDArray[np.float64], right: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Returns the points of the risk-coverage curve.

    Args:
        confidence: [N], larger is surer.
        right: [N].

    Returns:
        Coverage [N], from 1/N to 1, and the error among the surest so many, [N]. Equal confidences are answered
        together: each of them gets the error at their end.
    """
    order = np.argsort(-confidence, kind="stable")
    counts = np.arange(1, len(order) + 1)
    risk = np.cumsum(~right[order]) / counts
    ordered = confidence[order]
    last = np.searchsorted(-ordered, -ordered, side="right") - 1
    return counts / len(order), np.asarray(risk[last])


def explanation_figure(explanation: "Explanation") -> Figure:
    """Draws a photograph's crop, the heat maps over it, and the training cases most like it.

    Args:
        explanation: Of one photograph.

    Returns:
        The figure: crop and maps above, training cases below where there are any. A cross marks the hottest cell.
    """
    region, cases = explanation.region, explanation.neighbours
    columns = max(1 + len(explanation.views), len(cases))
    rows = 2 if cases else 1
    figure = Figure(figsize=(2.9 * columns, 3.3 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.ravel():
        panel.set_axis_off()
    panels[0, 0].imshow(explanation.crop)
    panels[0, 0].set_title(Path(str(explanation.photograph)).name, fontsize=8)
    for panel, view in zip(panels[0, 1:], explanation.views, strict=False):
        panel.imshow(view.picture)
        if view.peak is not None:
            panel.plot(view.peak[0] - region.x, view.peak[1] - region.y, "+", color="cyan", markersize=12)
        says = f"says {view.predicted} ({view.probabilities.max():.2f})"
        panel.set_title(f"{view.model}\n{says}\nevidence for {explanation.target}", fontsize=8)
    for panel, case in zip(panels[-1] if cases else (), cases, strict=False):
        panel.imshow(case.crop)
        panel.set_title(f"training: {case.label}\nsimilarity {case.similarity:.2f}", fontsize=8)
    return figure
