"""Draws the figures of a run as matplotlib ``Figure`` objects, without pyplot's global state."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kd_convnext.common.counting import counted
from kd_convnext.common.figures import PALETTE, grid_shape, label_ticks, line_look, put_caption, wrapped
from kd_convnext.evaluation.direction import Choice
from kd_convnext.evaluation.proportions import FEW, Interval, digits
from kd_convnext.runs.tables import class_table

if TYPE_CHECKING:
    from kd_convnext.evaluation.answers import Evaluation

_STAGES = {"train": "training", "val": "validation", "val/lesion": "validation, per lesion"}
_TITLES = {
    "feature": "Feature loss (Eq. 1)",
    "soft": "Soft-target loss",
    "soft_kl": "Soft targets without that entropy:\nKL divergence, 0 where both agree",
    "focal": "Focal loss (Eq. 4)",
    "f1_macro": "Macro F1",
    "learning_rate": "Learning rate",
}
_WITH_ENTROPY = "Soft-target loss (Eq. 3),\nwith the teacher's own entropy"
"""Title of the soft-target loss where its divergence stands beside it."""

_PAPER: dict[str, Any] = {"fc": "white", "ec": "none", "pad": 0.6, "alpha": 0.85}
"""Ground of numbers that an interval would strike through."""

_BY_MACRO_F1 = Choice()

_CELL = 0.9
"""Inches a cell of a matrix."""

_PICTURE = 2.3
"""Inches a picture of a grid."""

_PARTS = {"train": "Training part", "val": "Validation part", "test": "Test part", "predict": "Answers"}


@dataclass(frozen=True)
class Subject:
    """Subject of a figure, written above every figure of a run.

    Attributes:
        part: Part of the data.
        unit: What one answer is about.
        photographs: Labelled ones in it (regions of interest).
        lesions: Lesions they show; None where nothing is known of lesions.
        model: Name and size of the network.
    """

    part: Literal["train", "val", "test", "predict"]
    unit: Literal["photograph", "lesion"]
    photographs: int
    lesions: int | None
    model: str

    def says(self, what: str) -> str:
        """Returns a caption: what is drawn, of which part, by which unit, of how many, by which model."""
        of = "" if self.lesions is None else f" of {counted(self.lesions, 'lesion')}"
        behind = f"{counted(self.photographs, 'photograph')}{of}"
        return f"{what}. {_PARTS[self.part]}, judged per {self.unit}: {behind}. {self.model}."


def confusion_matrix(
    matrix: npt.ArrayLike,
    class_names: Sequence[str],
    normalise: Literal["true"] | None = "true",
    caption: str = "",
) -> Figure:
    """Draws a confusion matrix, rows true and columns predicted.

    Args:
        matrix: Counts, [C, C], rows true.
        class_names: The C classes, in the matrix's order.
        normalise: ``"true"`` colours a cell by its share of its row and writes the share under the count;
            ``None`` colours by the count and writes nothing else. A class without a sample has no shares.
        caption: Above it.

    Returns:
        The figure.
    """
    counts = np.asarray(matrix)
    sums = counts.sum(axis=1, keepdims=True)
    rates = np.divide(counts, sums, out=np.zeros(counts.shape), where=sums > 0)
    shown, top = (rates, 1.0) if normalise else (counts, max(1, counts.max(initial=0)))
    # As long as the longest name, beside the rows and, where it is turned, below the columns.
    side, names = _CELL * len(class_names), max((len(name) for name in class_names), default=0) * 0.08
    figure = Figure(figsize=(side + names + 2.0, side + names + 1.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shown, cmap="Blues", vmin=0, vmax=top)
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true class" if normalise else "count")
    for row, column in np.ndindex(*counts.shape):
        text = f"{counts[row, column]}"
        if normalise and sums[row, 0]:
            text += f"\n{rates[row, column]:.0%}"
        colour = "white" if shown[row, column] > 0.6 * top else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour)
    label_ticks(axes.xaxis, class_names, _CELL)
    label_ticks(axes.yaxis, class_names, _CELL)
    axes.set(xlabel="predicted", ylabel="true")
    put_caption(figure, caption)
    return figure


def training_curves(frame: pd.DataFrame, caption: str = "", choice: Choice | None = _BY_MACRO_F1) -> Figure:
    """Draws losses, macro F1 and learning rate over the epochs, like with like.

    What training minimises has a panel of its own. Each of its terms has another; validation knows the focal term
    alone and stands in that one. Where training has no terms its loss is the same as validation's: one panel.

    Args:
        frame: A ``metrics.csv`` of Lightning's ``CSVLogger``: columns such as ``epoch``, ``step``,
            ``train/loss``, ``train/loss_soft``, ``val/f1_macro`` (a ``_step`` or ``_epoch`` ending is
            understood, the epoch's value is preferred), empty where a row does not have the value. Values
            logged several times in an epoch are averaged.
        caption: Above it.
        choice: The score that chooses the epoch of ``best.ckpt``; None where none does.

    Returns:
        The figure, one panel a quantity that occurs, the chosen epoch marked in each; without any, an empty panel that
        says so.
    """
    axis = "epoch" if "epoch" in frame else "step"
    panels = {title: curves for title, curves in _curve_panels(frame, axis).items() if curves}
    best = _chosen(frame, axis, choice)
    columns = min(3, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    drawn = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel, (title, curves) in zip(drawn, panels.items(), strict=False):
        for number, (stage, curve) in enumerate(curves.items()):
            panel.plot(curve.index, curve, color=PALETTE[number], marker=".", label=stage)
        if choice is not None and best is not None:
            panel.axvline(best, color="0.4", ls=":", lw=1.2, label=f"best {choice.monitor}: {axis} {best:g}")
        panel.set(title=title, xlabel=axis)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    for panel in drawn[len(panels) :]:
        panel.set_axis_off()
    if not panels:
        drawn[0].set_title("no curves were logged")
    put_caption(figure, caption)
    return figure


def _curve_panels(frame: pd.DataFrame, axis: str) -> "dict[str, dict[str, pd.Series[float]]]":
    """Sorts what was logged into panels, each of one quantity."""
    found = {re.sub(r"_(step|epoch)$", "", str(name)) for name in frame}
    terms = sorted(name.removeprefix("train/loss_") for name in found if name.startswith("train/loss_"))
    terms = [term for term in terms if _curve(frame, f"train/loss_{term}", axis) is not None]
    wanted: dict[str, dict[str, str]] = {}
    if terms:
        wanted["What training minimises"] = {"train": "train/loss"}
        titles = _TITLES | ({"soft": _WITH_ENTROPY} if "soft_kl" in terms else {})
        for term in dict.fromkeys([*terms, "focal"]):
            wanted[titles.get(term, term)] = {"train": f"train/loss_{term}"}
        wanted[_TITLES["focal"]]["val"] = "val/loss"
    else:
        wanted["Loss"] = {"train": "train/loss", "val": "val/loss"}
    wanted[_TITLES["f1_macro"]] = {stage: f"{stage}/f1_macro" for stage in _STAGES}
    wanted[_TITLES["learning_rate"]] = {"train": "train/lr"}
    return {
        title: {
            _STAGES[stage]: curve for stage, name in names.items() if (curve := _curve(frame, name, axis)) is not None
        }
        for title, names in wanted.items()
    }


def method_curves(
    frames: Mapping[str, pd.DataFrame],
    quantity: str,
    caption: str = "",
    axis: Literal["epoch", "minutes"] = "epoch",
    choices: Mapping[str, Choice] | None = None,
) -> Figure:
    """Draws one quantity of several runs over their epochs or minutes.

    Args:
        frames: Name of each run and its ``metrics.csv``; for minutes with such a column.
        quantity: A column such as ``val/f1_macro``; runs without it are left out.
        caption: Above it.
        axis: Column that lies to the right.
        choices: By name of the run, the score that chooses the epoch of its ``best.ckpt``; macro F1 on validation where
            nothing is said.

    Returns:
        The figure, one line a run with the chosen epoch as a ring.
    """
    ringed = {name: (choices or {}).get(name, _BY_MACRO_F1) for name in frames}
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, (name, frame) in enumerate(frames.items()):
        curve = _curve(frame, quantity, axis)
        if curve is not None:
            colour, stroke = line_look(number)
            axes.plot(curve.index, curve, marker=".", color=colour, ls=stroke, label=wrapped(name, 2.0, 8))
            best = _chosen(frame, axis, ringed[name])
            if best is not None and best in curve.index:
                axes.plot(best, curve.loc[best], "o", mfc="none", mec=colour, ms=9)
    stage, _, score = quantity.rpartition("/")
    label = f"{_TITLES.get(score, score)}, {_STAGES.get(stage, stage)}"
    monitors = " or ".join(sorted({choice.monitor for choice in ringed.values()}))
    axes.set(xlabel=wrapped(f"{axis} (ring: best {monitors})", 4.0, 10), ylabel=label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    put_caption(figure, caption)
    return figure


def _chosen(frame: pd.DataFrame, axis: str, choice: Choice | None) -> float | None:
    """Finds the epoch that a score chooses: the first of the best; None where it was not logged."""
    curve = None if choice is None else _curve(frame, choice.monitor, axis)
    finite = None if curve is None else curve[np.isfinite(curve)]
    if choice is None or finite is None or finite.empty:
        return None
    place = int(finite.argmin() if choice.mode == "min" else finite.argmax())
    return float(finite.index[place])


def _curve(frame: pd.DataFrame, name: str, axis: str) -> "pd.Series[float] | None":
    """Finds one curve: the mean value of each epoch, or None."""
    for column in (f"{name}_epoch", name, f"{name}_step"):
        if column in frame:
            curve = frame.groupby(axis)[column].mean().dropna()
            return curve if len(curve) else None
    return None


def per_class_bars(
    evaluation: "Evaluation",
    intervals: Mapping[str, Sequence[Interval]] | None = None,
    groups: Sequence[int] | None = None,
    caption: str = "",
    unit: str = "lesion",
) -> Figure:
    """Draws precision, recall and F1 of every class as bars.

    Args:
        evaluation: Of a part with known labels.
        intervals: K intervals of each score, drawn over the bars.
        groups: K numbers of lesions or other units, written under the classes; fewer than ten are marked.
        caption: Above it.
        unit: What ``groups`` counts.

    Returns:
        The figure; under each class stands how many samples it has.
    """
    table = class_table(evaluation)
    each = 1.3
    figure = Figure(figsize=(2.0 + each * len(table), 4.2), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(table))
    for number, (score, label) in enumerate((("precision", "Precision"), ("recall", "Recall"), ("f1", "F1"))):
        at, heights = places + 0.27 * (number - 1), table[score].to_numpy()
        axes.bar(at, heights, width=0.25, label=label, color=PALETTE[number], alpha=0.75)
        # Of a class that nothing was labelled or predicted as, nothing is known.
        known = [True] * len(table) if intervals is None else [not math.isnan(one.low) for one in intervals[score]]
        for place, height, shown in zip(at, heights, known, strict=True):
            text = f"{height:.2f}" if shown else "-"
            axes.text(place, 0.02, text, fontsize=7, ha="center", va="bottom", bbox=_PAPER, zorder=5)
        if intervals is not None:
            ends = np.array([(one.low, one.high) for one in intervals[score]]).T
            arms = np.nan_to_num(np.clip(np.stack([heights - ends[0], ends[1] - heights]), 0, None))
            axes.errorbar(at, heights, yerr=arms, fmt="none", ecolor="black", elinewidth=0.9, capsize=2)
    labels = [f"{name}\n(n = {count})" for name, count in zip(table["class"], table["support"], strict=True)]
    if groups is not None:
        labels = [
            f"{label[:-1]},\n{counted(count, unit)}{' †' if count < FEW else ''})"
            for label, count in zip(labels, groups, strict=True)
        ]
    figure.set_figheight(4.2 + label_ticks(axes.xaxis, labels, each, 8))
    axes.set(ylim=(0, 1.05), ylabel="score")
    axes.legend(ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    put_caption(figure, caption)
    return figure


def crop_grid(
    images: Sequence[npt.NDArray[np.uint8]], titles: Sequence[str], together: int = 1, caption: str = ""
) -> Figure:
    """Shows pictures in a nearly square grid, each under its title.

    Args:
        images: N times uint8 [H, W, 3], RGB; sizes may differ.
        titles: N titles; long ones are broken into lines.
        together: So many that follow each other are kept in one row.
        caption: Above it.

    Returns:
        The figure.
    """
    rows, columns = grid_shape(len(images), together)
    lines = [wrapped(title, _PICTURE - 0.1, 7) for title in titles]
    deepest = max((text.count("\n") + 1 for text in lines), default=1)
    figure = Figure(figsize=(_PICTURE * columns, (_PICTURE + 0.13 * deepest) * rows + 0.4), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels:
        panel.set_axis_off()
        panel.set(xticks=[], yticks=[])  # hidden ones too are laid out, which takes longer than all else
    for panel, picture, title in zip(panels, images, lines, strict=False):
        panel.imshow(picture)
        panel.set_title(title, fontsize=7, parse_math=False)
    put_caption(figure, caption)
    return figure


def reliability_diagram(evaluation: "Evaluation", bins: int = 15, caption: str = "") -> Figure:
    """Draws how often a prediction is right against how sure it was (Guo et al. 2017, Fig. 1).

    Args:
        evaluation: Of a part with known labels.
        bins: Equal-width bins of the highest probability; 15 as in the expected calibration error.
        caption: Above it.

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
    upper.bar(centres[filled], accuracy[filled], width=0.9 / bins, color=PALETTE[0], label="this model")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    error = f"expected calibration error {evaluation.metrics()['ece']:.{digits(int(counts.sum()))}f}"
    upper.set_title(error, fontsize=10, pad=22)
    upper.legend(ncols=2, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False)
    lower.bar(centres, counts, width=0.9 / bins, color="grey")
    lower.set(xlabel="confidence (highest probability)", ylabel="answers")
    put_caption(figure, caption)
    return figure
