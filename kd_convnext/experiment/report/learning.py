"""Puts methods that were trained on different numbers of lesions on one learning curve."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from kd_convnext.common.figures import line_look, wrapped
from kd_convnext.data.manifest.grouping import lesion_names
from kd_convnext.errors import ConfigError
from kd_convnext.evaluation.proportions import Interval, digits
from kd_convnext.evaluation.statistics import scores
from kd_convnext.experiment.report.analysis import Analysis
from kd_convnext.experiment.report.descriptions import network_words, teacher_files
from kd_convnext.experiment.report.results import Arm
from kd_convnext.experiment.report.tables import Table
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.left_out import read_used

_DIFFERENT = 1.05
"""Ratio of training lesions from which two arms stand at different places of a curve."""

_ROOM = 0.12
"""Share of the axis that the label of a place needs."""


@dataclass(frozen=True)
class Point:
    """Scores one arm by what it was trained on.

    Attributes:
        arm: The method.
        network: Its network: arms of one network and family are joined by a line.
        lesions: Lesions it was trained on, mean over its repeats.
        photographs: Regions of interest, likewise.
        value: Macro F1 of all repeats together, per photograph.
        interval: Of it, 95 % by group.
    """

    arm: Arm
    network: str
    lesions: float
    photographs: float
    value: float
    interval: Interval


def learning_points(analysis: Analysis) -> list[Point]:
    """Collects the arms by the size of their training part, smallest first.

    Args:
        analysis: The numbers.

    Returns:
        The points of networks that were trained on different numbers of lesions; empty where there are none.
    """
    points = []
    for arm in analysis.methods:
        found = (_trained_on(result.run) for result in arm.results if result.run.split.is_file())
        sizes = [size for size in found if size is not None]
        if not len(arm.answers) or not sizes:
            continue
        lesions, photographs = np.mean(sizes, axis=0)
        value = float(scores(arm.counts.total)["f1_macro"])
        interval = analysis.intervals[arm]["f1_macro"]
        points.append(Point(arm, _network(arm), float(lesions), float(photographs), value, interval))
    kept = []
    for network in dict.fromkeys(point.network for point in points):
        own = [point.lesions for point in points if point.network == network]
        kept += [network] if max(own) >= _DIFFERENT * min(own) else []
    return sorted((point for point in points if point.network in kept), key=lambda point: point.lesions)


def learning_table(analysis: Analysis) -> Table | None:
    """Makes the table of scores by training lesions; None where all networks had the same."""
    points = learning_points(analysis)
    if not points:
        return None
    rows = []
    for point in points:
        places = digits(len(point.arm.counts))
        span = f"[{point.interval.low:.{places}f}, {point.interval.high:.{places}f}]"
        cells = (f"{point.lesions:.0f}", f"{point.photographs:.0f}", f"{point.value:.{places}f} {span}")
        rows.append((point.arm.title, point.network, *cells))
    by = points[0].arm.counts.by
    note = f"Macro F1 of the test part per photograph, 95 % interval {by}; what is judged is the same for all."
    columns = ("Method", "Network", "Training lesions", "Training photographs", "Macro F1")
    return Table("Learning curve", columns, tuple(rows), note)


def learning_curve(points: list[Point]) -> Figure:
    """Draws macro F1 against the number of training lesions, one line a network.

    Args:
        points: Of `learning_points`.

    Returns:
        The figure; the axis of lesions is logarithmic.
    """
    figure = Figure(figsize=(7.4, 4.2), layout="constrained")
    axes = figure.subplots()
    for number, network in enumerate(dict.fromkeys(point.network for point in points)):
        own = [point for point in points if point.network == network]
        at, values = [point.lesions for point in own], [point.value for point in own]
        arms = np.nan_to_num([[p.value - p.interval.low, p.interval.high - p.value] for p in own]).clip(0).T
        colour, stroke = line_look(number)
        label = wrapped(network, 2.0, 8)
        axes.errorbar(at, values, yerr=arms, marker="o", color=colour, ls=stroke, capsize=3, label=label)
    places = _apart(sorted({round(point.lesions) for point in points}))
    axes.set_xscale("log")
    axes.set_xticks(places, [str(place) for place in places])
    axes.minorticks_off()
    axes.set(xlabel="lesions trained on", ylabel="macro F1 on the test part")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return figure


def _apart(places: list[int]) -> list[int]:
    """Leaves out numbers whose labels would run into the last one's on a logarithmic axis over all of them."""
    kept: list[int] = []
    needed = _ROOM * math.log(places[-1] / places[0]) if places else 0.0
    for place in places:
        if not kept or math.log(place / kept[-1]) > needed:
            kept.append(place)
    return kept


def _network(arm: Arm) -> str:
    return f"{network_words(arm)}{', distilled' if teacher_files(arm.results[0].config) else ''}"


def _trained_on(run: RunFolder) -> tuple[int, int] | None:
    """Counts lesions and regions of the training part in a split file; None where it cannot be read, told elsewhere."""
    try:
        table = read_used(run, ("image", "label", "lesion_id", "patient_id", "split"))
    except ConfigError:
        return None
    train = table[table["split"] == "train"]
    return int(np.unique(lesion_names(train)).size), len(train)
