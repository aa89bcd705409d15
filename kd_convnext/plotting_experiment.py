"""Figures of an experiment. Each function returns a matplotlib ``Figure``; none touches pyplot's global state."""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

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


def score_bars(groups: Mapping[str, Mapping[str, Bar]], label: str = "score") -> Figure:
    """Draws groups of bars with intervals: methods and their metrics (the paper's Fig. 7), classes and their scores.

    Args:
        groups: For each group, in order, its bars by name; every group has the same names.
        label: Of the vertical axis.

    Returns:
        The figure; single repeats are points on the bars.
    """
    names = list(next(iter(groups.values()), {}))
    figure = Figure(figsize=(max(6.4, 2.0 + 1.25 * len(groups)), 4.0), layout="constrained")
    axes = figure.subplots()
    width = 0.8 / max(1, len(names))
    for place, name in enumerate(names):
        bars = [group[name] for group in groups.values()]
        at = np.arange(len(groups)) + width * (place - (len(names) - 1) / 2)
        heights = np.array([bar.value for bar in bars])
        ends = np.array([bar.interval for bar in bars]).T
        # A percentile interval need not hold its point estimate; the bars' arms must not turn round.
        arms = np.nan_to_num(np.clip(np.stack([heights - ends[0], ends[1] - heights]), 0, None))
        axes.bar(at, heights, width=0.9 * width, yerr=arms, label=name, capsize=2, error_kw={"lw": 0.9})
        for x, bar in zip(at, bars, strict=True):
            axes.plot(np.full(len(bar.repeats), x), bar.repeats, "k.", markersize=3, alpha=0.6)
    turned = any(len(name) > 14 for name in groups)
    ticks = [_wrapped(name) for name in groups]
    axes.set_xticks(range(len(groups)), ticks, rotation=20 if turned else 0, ha="right" if turned else "center")
    axes.set(ylim=(0, 1.02), ylabel=label)
    axes.grid(axis="y", alpha=0.3)
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
    figure = Figure(figsize=(7.0, 1.2 + 0.4 * max(1, len(differences))), layout="constrained")
    axes = figure.subplots()
    for row, (value, plain, corrected) in enumerate(differences.values()):
        axes.plot(corrected, (row, row), color="tab:blue", lw=1, label="corrected" if row == 0 else None)
        axes.plot(plain, (row, row), color="tab:blue", lw=4, alpha=0.6, label="95 % interval" if row == 0 else None)
        axes.plot(value, row, "o", color="black", markersize=4)
    axes.axvline(0, color="grey", linestyle="--", lw=1)
    axes.set_yticks(range(len(differences)), [_wrapped(name) for name in differences])
    axes.set_ylim(len(differences) - 0.5, -0.5)
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    if differences:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _wrapped(name: str) -> str:
    """Breaks a long name into lines, so that it leaves room for the drawing."""
    return "\n".join(part for line in name.split("\n") for part in textwrap.wrap(line, 24))
