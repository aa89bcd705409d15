"""Judges the networks of the demo: the table with paired intervals by lesion, and its figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from rich.console import Console
from rich.table import Table

from kd_convnext.common.figures import save_figure
from kd_convnext.common.tables import read_table
from kd_convnext.data.crops.cache.prepared import PreparedCrops
from kd_convnext.evaluation.comparisons import Comparison, compare_pairs, make_pair
from kd_convnext.evaluation.proportions import digits
from kd_convnext.evaluation.statistics import METRICS, Metric, count_groups, scores
from kd_convnext.experiment.report.results import read_predictions
from kd_convnext.runs.figures import crop_grid, method_curves
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.tables import write_table
from kd_convnext.tools.demo_fits import METHODS, DemoFits, Method

COMPARED: Sequence[tuple[Method, Method]] = (
    ("teacher", "alone"),
    ("paper", "alone"),
    ("best", "alone"),
    ("best", "paper"),
)
"""The differences that are shown, with intervals."""

_SHOWN: tuple[Metric, ...] = ("accuracy", "f1_macro")

RESAMPLES = 2000
"""Of the bootstrap over lesions."""


class DemoTable:
    """Scores of all methods on the same lesions.

    Attributes:
        results: One row a fit: ``method``, ``repeat``, and the metrics of its photographs, 0..1.
        comparisons: Of :data:`COMPARED`, over all repeats.
    """

    def __init__(self, answers: Mapping[Method, Sequence[Path]]) -> None:
        """Reads and compares answers.

        Args:
            answers: Of each method the predictions of its repeats, in the order of the repeats.

        Raises:
            OSError: A file cannot be read.
        """
        frames = {method: [read_predictions(path)[0] for path in paths] for method, paths in answers.items()}
        self.class_names = read_predictions(answers["best"][0])[1]
        joined = {method: _joined(found) for method, found in frames.items()}
        rows = []
        for method, frame in joined.items():
            for repeat, part in frame.groupby("repeat"):
                found = scores(count_groups(part, self.class_names).total)
                rows.append({"method": method, "repeat": repeat} | {str(name): float(found[name]) for name in METRICS})
        self.results = pd.DataFrame(rows)
        self._counts = {method: count_groups(frame, self.class_names) for method, frame in joined.items()}
        pairs = [make_pair(one, joined[one], other, joined[other], self.class_names) for one, other in COMPARED]
        self.comparisons: list[Comparison] = compare_pairs([pair for pair in pairs if pair], RESAMPLES, seed=0)

    def write(self, folder: Path) -> None:
        """Writes ``results.csv`` and ``comparisons.csv``.

        Args:
            folder: Of the demo.

        Raises:
            ConfigError: A file cannot be written.
        """
        write_table(folder / "results.csv", self.results)
        rows = [
            {
                "method": found.title,
                "against": found.against,
                "metric": metric,
                "difference": difference.value,
                "low": difference.interval.low,
                "high": difference.interval.high,
                "lesions": found.groups,
            }
            for found in self.comparisons
            for metric, difference in found.differences.items()
        ]
        write_table(folder / "comparisons.csv", pd.DataFrame(rows))

    def show(self) -> None:
        """Prints the table, and what it says of the best recipe."""
        differences = {(found.title, found.against): found.differences["f1_macro"] for found in self.comparisons}
        lesions, photographs = self._counts["best"], len(self.results[self.results["method"] == "best"])
        title = f"Held-out lesions: {len(lesions)}, photographs: {lesions.photographs // photographs}"
        table = Table(title=title)
        table.add_column("")
        for name in ("accuracy", "macro F1", "of each seed", "macro F1 minus alone [95 % interval by lesion]"):
            table.add_column(name, justify="right")
        places = digits(len(lesions))
        for method, name in METHODS.items():
            whole = scores(self._counts[method].total)
            each = self.results.loc[self.results["method"] == method, "f1_macro"]
            single = "" if method == "teacher" else " ".join(f"{value:.{places}f}" for value in each)
            found = differences.get((method, "alone"))
            values = (found.value, found.interval.low, found.interval.high) if found else ()
            gain = "{} [{}, {}]".format(*(f"{value:+.{places}f}" for value in values)) if values else ""
            table.add_row(name, *(f"{whole[metric]:.{places}f}" for metric in _SHOWN), single, gain)
        labels = self._counts["best"].per_class()
        console = Console(width=max(110, Console().width))
        console.print(table)
        named = ", ".join(f"{name} {count}" for name, count in zip(self.class_names, labels, strict=True))
        print(f"Lesions: {named}. Chance: {1 / len(labels):.2f}.")
        for other, called in (("alone", "student alone"), ("paper", "the paper's method")):
            if found := differences.get(("best", other)):
                low, high = found.interval.low, found.interval.high
                wins = "excludes" if found.interval.excludes_zero else "does not exclude"
                gain = f"{found.value:+.{places}f} [{low:+.{places}f}, {high:+.{places}f}] macro F1"
                print(f"Best recipe minus {called}: {gain}; the interval {wins} 0.")


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Puts the repeats of a method below each other."""
    numbered = [frame.assign(repeat=repeat) for repeat, frame in enumerate(frames)]
    return pd.concat(numbered, ignore_index=True).rename(columns={"lesion_id": "lesion"})


def draw_figures(fits: DemoFits) -> None:
    """Draws ``examples.png`` and ``curves.png``; each run's own figures lie in its folder.

    Args:
        fits: The finished fits.

    Raises:
        KDConvNeXtError: A crop or a file cannot be read or written.
    """
    folder, data = RunFolder(fits.folder), fits.data("alone", 0)
    data.setup("test")
    crops: PreparedCrops = data.crops
    rows = data.split.rows("test")
    labels = data.manifest.labels[rows]
    shown = [int(row) for label in range(data.num_classes) for row in rows[labels == label][:4]]
    titles = [data.class_names[data.manifest.labels[row]] for row in shown]
    caption = f"Drawn specimens, up to four of each of {data.num_classes} classes: crops as the networks get them."
    pictures = [np.asarray(crops.load(row)) for row in shown]
    save_figure(folder.figure("examples"), crop_grid(pictures, titles, caption=caption))
    students = [method for method in METHODS if method != "teacher"]
    curves = {METHODS[method]: read_curve(fits.run_of(method, 0)) for method in students}
    caption = "Macro F1 on the validation part of drawn specimens, judged per photograph; seed 0."
    save_figure(folder.figure("curves"), method_curves(curves, "val/f1_macro", caption))


def read_curve(run: RunFolder) -> pd.DataFrame:
    """Reads the ``metrics.csv`` of a run as numbers."""
    frame: pd.DataFrame = read_table(run.path / "metrics.csv").apply(pd.to_numeric, errors="coerce")
    return frame
