"""Draws the figures of a run as matplotlib ``Figure`` objects, without pyplot's global state."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kd_convnext.runs.tables import class_table

if TYPE_CHECKING:
    from kd_convnext.evaluation.answers import Evaluation

_STAGE_COLOURS = {"train": "tab:blue", "val": "tab:orange", "val/lesion": "tab:green"}
_TITLES = {
    "loss": "Loss",
    "loss_feature": "Feature loss (Eq. 1)",
    "loss_soft": "Soft-target loss (Eq. 3)",
    "loss_focal": "Focal loss (Eq. 4)",
    "f1_macro": "Macro F1",
}
_CELL = 0.9
"""Inches a cell or picture of a grid."""


def confusion_matrix(
    matrix: npt.ArrayLike, class_names: Sequence[str], normalise: Literal["true"] | None = "true"
) -> Figure:
    """Draws a confusion matrix, rows true and columns predicted.

    Args:
        matrix: Counts, [C, C], rows true.
        class_names: The C classes, in the matrix's order.
        normalise: ``"true"`` colours a cell by its share of its row and writes the share under the count;
            ``None`` colours by the count and writes nothing else. A class without a sample has no shares.

    Returns:
        The figure.
    """
    counts = np.asarray(matrix)
    sums = counts.sum(axis=1, keepdims=True)
    rates = np.divide(counts, sums, out=np.zeros(counts.shape), where=sums > 0)
    shown, top = (rates, 1.0) if normalise else (counts, max(1, counts.max(initial=0)))
    size = 2.0 + _CELL * len(class_names)
    figure = Figure(figsize=(size + 0.6, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=top)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class" if normalise else "count")
    for row, column in np.ndindex(*counts.shape):
        text = f"{counts[row, column]}"
        if normalise and sums[row, 0]:
            text += f"\n{rates[row, column]:.0%}"
        colour = "white" if shown[row, column] > 0.6 * top else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    axes.set_xticks(range(len(class_names)), class_names, rotation=30, ha="right")
    axes.set_yticks(range(len(class_names)), class_names)
    axes.set(xlabel="predicted", ylabel="true")
    return figure


def training_curves(frame: pd.DataFrame) -> Figure:
    """Draws the loss, its terms and macro F1 over the epochs, training against validation.

    Args:
        frame: A ``metrics.csv`` of Lightning's ``CSVLogger``: columns such as ``epoch``, ``step``,
            ``train/loss``, ``train/loss_soft``, ``val/f1_macro`` (a ``_step`` or ``_epoch`` ending is
            understood, the epoch's value is preferred), empty where a row does not have the value. Values
            logged several times in an epoch are averaged.

    Returns:
        The figure, one panel a quantity that occurs; without any, an empty panel that says so.
    """
    axis = "epoch" if "epoch" in frame else "step"
    curves = {
        quantity: {stage: _curve(frame, f"{stage}/{quantity}", axis) for stage in _STAGE_COLOURS}
        for quantity in ("loss", *_terms(frame), "f1_macro")
    }
    found = [name for name, stages in curves.items() if any(curve is not None for curve in stages.values())]
    columns = min(3, max(1, len(found)))
    rows = max(1, math.ceil(len(found) / columns))
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, quantity in zip(panels, found, strict=False):
        for stage, colour in _STAGE_COLOURS.items():
            curve = curves[quantity][stage]
            if curve is not None:
                panel.plot(curve.index, curve, color=colour, marker=".", label=stage)
        panel.set(title=_TITLES.get(quantity, _named(quantity)), xlabel=axis)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        panel.legend()
    for panel in panels[len(found) :]:
        panel.set_axis_off()
    if not found:
        panels[0].set_title("no curves were logged")
    return figure


def _terms(frame: pd.DataFrame) -> list[str]:
    """Names the loss terms in the columns of a metrics.csv, such as ``loss_soft``, in their order."""
    found = (name.removeprefix("train/") for name in map(str, frame) if name.startswith("train/loss_"))
    return [
        name for name in dict.fromkeys(n.removesuffix("_epoch").removesuffix("_step") for n in found) if name != "loss"
    ]


def _named(quantity: str) -> str:
    """Makes a title of ``loss_my_term``: ``My term loss``."""
    return f"{quantity.removeprefix('loss_').replace('_', ' ').capitalize()} loss"


def method_curves(frames: Mapping[str, pd.DataFrame], quantity: str) -> Figure:
    """Draws one quantity of several runs over their epochs.

    Args:
        frames: Name of each run and its ``metrics.csv``.
        quantity: A column such as ``val/f1_macro``; runs without it are left out.

    Returns:
        The figure, one line a run.
    """
    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    axes = figure.subplots()
    for name, frame in frames.items():
        curve = _curve(frame, quantity, "epoch")
        if curve is not None:
            axes.plot(curve.index, curve, marker=".", label=name)
    axes.set(xlabel="epoch", ylabel=quantity)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    return figure


def _curve(frame: pd.DataFrame, name: str, axis: str) -> "pd.Series[float] | None":
    """Finds one curve: the mean value of each epoch, or None."""
    for column in (f"{name}_epoch", name, f"{name}_step"):
        if column in frame:
            curve = frame.groupby(axis)[column].mean().dropna()
            return curve if len(curve) else None
    return None


def per_class_bars(evaluation: "Evaluation") -> Figure:
    """Draws precision, recall and F1 of every class as bars.

    Args:
        evaluation: Of a part with known labels.

    Returns:
        The figure; under each class stands how many samples it has.
    """
    table = class_table(evaluation)
    figure = Figure(figsize=(2.0 + 1.3 * len(table), 3.6), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(table))
    for shift, (score, label) in enumerate((("precision", "Precision"), ("recall", "Recall"), ("f1", "F1"))):
        bars = axes.bar(places + 0.27 * (shift - 1), table[score], width=0.25, label=label)
        axes.bar_label(bars, fmt="%.2f", fontsize=7)
    labels = [f"{name}\n(n = {count})" for name, count in zip(table["class"], table["support"], strict=True)]
    axes.set_xticks(places, labels)
    axes.set(ylim=(0, 1.1), ylabel="score")
    axes.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.15), frameon=False)
    return figure


def crop_grid(images: Sequence[npt.NDArray[np.uint8]], titles: Sequence[str], together: int = 1) -> Figure:
    """Shows pictures in a nearly square grid, each under its title.

    Args:
        images: N times uint8 [H, W, 3], RGB; sizes may differ.
        titles: N titles.
        together: So many that follow each other are kept in one row.

    Returns:
        The figure.
    """
    columns = together * max(1, math.ceil(math.sqrt(len(images)) / together))
    rows = max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(1.8 * columns, 2.0 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
    for panel, picture, title in zip(panels, images, titles, strict=False):
        panel.imshow(picture)
        panel.set_title(title, fontsize=8)
    return figure


def reliability_diagram(evaluation: "Evaluation", bins: int = 15) -> Figure:
    """Draws how often a prediction is right against how sure it was (Guo et al. 2017, Fig. 1).

    Args:
        evaluation: Of a part with known labels.
        bins: Equal-width bins of the highest probability; 15 as in the expected calibration error.

    Returns:
        The figure: accuracy of each bin that holds a sample over the diagonal of perfect calibration, and
        below it the number of samples in each bin. The title gives the expected calibration error.
    """
    known = evaluation.labels >= 0
    confidence = evaluation.probabilities[known].max(axis=1)
    right = (evaluation.predictions == evaluation.labels)[known]
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    counts = np.bincount(place, minlength=bins)
    accuracy = np.bincount(place, weights=right, minlength=bins) / np.maximum(counts, 1)
    centres = (np.arange(bins) + 0.5) / bins
    figure = Figure(figsize=(4.4, 5.0), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="grey", linestyle="--", label="perfectly calibrated")
    filled = counts > 0
    upper.bar(centres[filled], accuracy[filled], width=0.9 / bins, label="this model")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.set_title(f"expected calibration error {evaluation.metrics()['ece']:.3f}")
    upper.legend(loc="upper left")
    lower.bar(centres, counts, width=0.9 / bins, color="grey")
    lower.set(xlabel="confidence (highest probability)", ylabel="samples")
    return figure
