"""Draws figures of calibration and abstention. Each function returns a matplotlib ``Figure``."""

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from kd_convnext.common.figures import PALETTE, put_caption
from kd_convnext.evaluation.proportions import digits


def risk_coverage(
    confidence: npt.NDArray[np.float64],
    right: npt.NDArray[np.bool_],
    answered: npt.NDArray[np.bool_],
    caption: str = "",
) -> Figure:
    """Draws what abstaining buys: the error among the answers given, over the share of answers given.

    Args:
        confidence: [N], highest probability of each case.
        right: [N], whether its most probable class is the true one.
        answered: [N], whether the abstention rule lets the answer pass.
        caption: Above it.

    Returns:
        The figure: the curve of abstaining by confidence alone (Geifman, El-Yaniv 2017), and the rule as a point. The
        title gives the area under the curve.
    """
    coverage, risk = risk_coverage_curve(confidence, right)
    figure = Figure(figsize=(5.0, 3.8), layout="constrained")
    axes = figure.subplots()
    axes.plot(coverage, risk, color=PALETTE[0], label="abstaining by confidence")
    if answered.any():
        axes.plot(answered.mean(), 1 - right[answered].mean(), "o", color=PALETTE[4], label="prediction set and gate")
    axes.set(xlim=(0, 1.02), ylim=(0, None), xlabel="share of lesions answered", ylabel="error among answers")
    axes.set_title(f"area under the curve {risk.mean():.{digits(len(risk))}f}")
    axes.grid(alpha=0.3)
    axes.legend()
    put_caption(figure, caption)
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
