"""Tabulates an experiment: the paper's values beside ours, intervals, comparisons."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from kd_convnext.common.counting import count_words, counted
from kd_convnext.common.tables import markdown_text
from kd_convnext.evaluation.comparisons import Comparison, Difference, corrected_resamples
from kd_convnext.evaluation.proportions import FEW, Interval, digits
from kd_convnext.evaluation.statistics import METRICS, Metric, class_intervals, class_scores, scores
from kd_convnext.experiment.report import paper_values as reference
from kd_convnext.experiment.report.analysis import Analysis
from kd_convnext.experiment.report.descriptions import network_words
from kd_convnext.experiment.report.results import Arm
from kd_convnext.runs.tables import read_cost

NONE = "-"
MARK = "†"
"""Behind the number of lesions, or other units, of a class that has too few of them."""
NAMES = {
    "accuracy": "Accuracy [%]",
    "precision_macro": "Precision [%]",
    "recall_macro": "Recall [%]",
    "f1_paper": "F1, paper's reading",
    "f1_macro": "F1, mean of classes",
}
"""Metrics as columns, in the paper's order, its own reading of F1 first."""

PAPER = ("Paper: accuracy", "Paper: precision", "Paper: recall", "Paper: F1")

COST = ("Parameters", "Multiply-adds", "ms a photograph", "Training [min]")

MEANS = "Mean ± standard deviation over the repeats, on test."

_COST_NOTE = (
    "Cost of one photograph on the machine of the test, and of a whole cell, without its teacher's (median of the "
    "repeats, by the clock, with the test); - where it was not measured."
)

COMPARED: tuple[Metric, ...] = ("f1_macro", "accuracy")
"""The metrics that may be called better or worse: macro F1 first, which also chooses the checkpoint."""

SHORT = {"accuracy": "accuracy", "f1_macro": "macro F1"}


@dataclass(frozen=True)
class Table:
    """A table of texts.

    Attributes:
        title: Above it.
        columns: Heads.
        rows: One text a column.
        note: Below it, in full sentences.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str


def ablation(analysis: Analysis) -> Table | None:
    """The paper's Table 2."""
    arms = analysis.of_family("ablation")
    return _beside_the_paper(arms, "Ablation (the paper's Table 2)") if arms else None


def rivals(analysis: Analysis) -> Table | None:
    """The paper's Fig. 7: single networks, and the method under study."""
    singles = ("convnext", "swin", "kd_both")
    if not analysis.of_family("rival"):
        return None
    arms = [arm for arm in analysis.methods if arm.record.family == "rival" or arm.record.method in singles]
    return _beside_the_paper(arms, "Rivals under the same conditions (the paper's Fig. 7)")


def runs(analysis: Analysis) -> Table | None:
    """Runs that are no part of the paper's grid."""
    arms = analysis.of_family("run")
    if not arms:
        return None
    rows = [(*means(arm), *_cost(arm)) for arm in arms]
    return Table("Runs", ("Run", "Repeats", *NAMES.values(), *COST), tuple(rows), f"{MEANS} {_COST_NOTE}")


def pooled(analysis: Analysis) -> Table | None:
    """Intervals, and how many groups are behind them."""
    arms = [arm for arm in analysis.intervals if len(arm.answers)]
    if not arms:
        return None
    rows = []
    for arm in arms:
        values, found = scores(arm.counts.total), analysis.intervals[arm]
        behind = len(arm.counts)
        cells = (_with_interval(float(values[name]), found[name], _format(name, behind)) for name in _metrics())
        rows.append((arm.title, str(behind), str(arm.counts.photographs), *cells))
    unit = arms[0].counts.unit
    note = (
        "Each value is of the answers of all repeats together, so it may differ a little from the mean over the "
        f"repeats. In brackets its 95 % interval: of accuracy exact for as many trials as the {unit}s are worth (Korn "
        f"& Graubard 1998); of means over the classes percentile bootstrap, {analysis.settings.resamples} resamples of "
        f"{unit}s within each class (Rao & Wu 1988), a {unit} with all its photographs of all repeats, no narrower "
        "than the classes' own intervals put together. A photograph "
        "counts in every repeat that tested it. The intervals hold for the networks as trained."
    )
    return Table("95 % intervals", ("Method", arms[0].counts.head, "Photographs", *NAMES.values()), tuple(rows), note)


def by_lesion(analysis: Analysis) -> Table | None:
    """The metrics of lesions in place of photographs."""
    arms = [arm for arm in analysis.intervals if np.isfinite(arm.values("lesion/accuracy")).any()]
    if not arms:
        return None
    rows = [means(arm, "lesion/") for arm in arms]
    note = "One answer a lesion: the mean probability over its photographs. Mean ± standard deviation over the repeats."
    return Table("Judged per lesion", ("Method", "Repeats", *NAMES.values()), tuple(rows), note)


def compared(analysis: Analysis) -> Table | None:
    """Every method against the baseline."""
    if not analysis.comparisons:
        return None
    against = analysis.comparisons[0].against
    return _comparison_table(analysis.comparisons, f"Compared with {against}", analysis.settings.resamples)


def against_teachers(analysis: Analysis) -> Table | None:
    """Builds the table of every student against its teacher."""
    if not analysis.teachers:
        return None
    return _comparison_table(
        analysis.teachers, "Students compared with their own teachers", analysis.settings.resamples
    )


def finding(analysis: Analysis) -> list[str]:
    """Writes the main result in two sentences: the best method's scores, and the methods it is better than."""
    arm = analysis.best
    if arm is None or not len(arm.answers):
        return ["No method has been tested: nothing is found."]
    values, spans, count = scores(arm.counts.total), analysis.intervals.get(arm, {}), len(arm.counts)
    unit = arm.counts.unit
    shown = [
        f"{SHORT[metric]} {_with_interval(float(values[metric]), spans[metric], _fraction(count))}"
        for metric in COMPARED
        if metric in spans
    ]
    repeats = len(arm.results)
    number = arm.counts.photographs
    behind = f"{counted(number, 'answer')} in {repeats} repeats about"
    if repeats == 1:
        behind = f"{counted(number, 'photograph')} of"
    first = (
        f"{arm.title} ({network_words(arm)}) reaches {' and '.join(shown)} on the test part: {behind} "
        f"{counted(count, unit)}; 95 % intervals, the {unit} is the unit. {arm.counts.lacking(arm.class_names)}"
    ).rstrip()
    mine = [one for one in (*analysis.teachers, *analysis.comparisons) if one.title == arm.title]
    said = list(dict.fromkeys(f"against {one.against}: {_verdict(one, 'f1_macro')}" for one in mine))
    if said:
        return [first, f"It is compared {unit} by {unit} {'; '.join(said)}."]
    others = [one for one in analysis.comparisons if one.against == arm.title]
    if others:
        listed = "; ".join(f"{one.title}: {_verdict(one, 'f1_macro')}" for one in others)
        return [first, f"The others are compared with it {unit} by {unit}: {listed}."]
    return [first, "It is compared with no other network here."]


def resolution(analysis: Analysis) -> Table | None:
    """Super-resolution against its controls (the claim of the paper's Fig. 3)."""
    if not analysis.resolution:
        return None
    others = sorted({found.against for found in analysis.resolution})
    against = others[0] if len(others) == 1 else "the experiment's own setting"
    title = f"Differently enlarged crops compared with {against}"
    return _comparison_table(analysis.resolution, title, analysis.settings.resamples)


def sweep(analysis: Analysis) -> Table | None:
    """The search over alpha, beta and T, on validation only."""
    arms = analysis.of_family("sweep")
    if not arms:
        return None
    ranked = sorted(arms, key=lambda arm: -np.nan_to_num(arm.values("f1_macro").mean(), nan=-1.0))
    rows = [(arm.record.title, arm.record.setting, *means(arm)[1:]) for arm in ranked]
    note = (
        "Mean ± standard deviation over the repeats, on validation; the test part was not touched. Best macro F1 first."
    )
    columns = ("Method", "Setting", "Repeats", *NAMES.values())
    return Table("Search over the loss (validation)", columns, tuple(rows), note)


def per_class(analysis: Analysis) -> Table | None:
    """The paper's Table 3, of the best method."""
    arm = analysis.best
    if arm is None or not len(arm.answers):
        return None
    answers = arm.counts
    values = class_scores(answers.total)
    found = class_intervals(answers)
    paper = set(arm.class_names) == set(reference.PER_CLASS)
    behind, photographs = answers.per_class(), answers.total.sum(axis=1)
    rows = []
    for k, name in enumerate(arm.class_names):
        cells = (
            _with_interval(values[score][k], found[score][k], _fraction(int(behind[k])))
            for score in ("precision", "recall", "f1")
        )
        printed = tuple(f"{value:.4f}" for value in reference.PER_CLASS[name]) if paper else ()
        rows.append((name, _marked(int(behind[k])), str(photographs[k]), *cells, *printed))
    printed = ("Paper: precision", "Paper: recall") if paper else ()
    columns = ("Class", answers.head, "Photographs", "Precision", "Recall", "F1", *printed)
    note = (
        f"All repeats together; in brackets exact 95 % intervals for as many trials as the {answers.unit}s are worth. "
        f"{NONE}: nothing was predicted or labelled so, which counts as 0 in the means. "
        f"{_weak(behind, answers.unit)}Shown because: {analysis.chosen_by}."
    )
    return Table(f"Per class: {arm.title}{_like(analysis, 'Table 3')}", columns, tuple(rows), note)


def confusion(analysis: Analysis) -> Table | None:
    """The paper's Fig. 8, of the best method: counts and rates."""
    arm = analysis.best
    if arm is None or not len(arm.answers):
        return None
    total = arm.counts.total
    rows = []
    for name, counts in zip(arm.class_names, total, strict=True):
        rates = (f"{count} ({count / counts.sum():.0%})" if counts.sum() else "0" for count in counts)
        rows.append((name, *rates, str(counts.sum())))
    note = "Photographs of all repeats; in brackets the share of the true class."
    columns = ("True class", *(f"as {name}" for name in arm.class_names), "Sum")
    return Table(f"Confusion matrix: {arm.title}{_like(analysis, 'Fig. 8')}", columns, tuple(rows), note)


def _like(analysis: Analysis, name: str) -> str:
    """Names the paper's table or figure that an experiment of the paper's kind repeats; "" for runs of one's own."""
    return f" (the paper's {name})" if analysis.of_family("ablation", "rival") else ""


def verdicts(comparisons: Sequence[Comparison]) -> list[str]:
    """Writes the verdicts of the comparisons in sentences.

    Args:
        comparisons: With one baseline.

    Returns:
        One sentence a comparison.
    """
    return [
        f"{found.title} against {found.against}: {'; '.join(_verdict(found, metric) for metric in COMPARED)}."
        for found in comparisons
    ]


def markdown(table: Table) -> str:
    """Writes a table as GitHub's Markdown, with names escaped."""
    lines = [f"## {markdown_text(table.title)}", ""]
    lines += [
        f"| {' | '.join(map(markdown_text, row))} |"
        for row in (table.columns, ("---",) * len(table.columns), *table.rows)
    ]
    return "\n".join([*lines, "", markdown_text(table.note), ""])


def _beside_the_paper(arms: Sequence[Arm], title: str) -> Table:
    rows = []
    for arm in arms:
        row = reference.METHODS.get(arm.record.method, reference.PaperRow())
        printed = tuple(
            NONE if value is None else f"{value:.2f}" for value in (row.accuracy, row.precision, row.recall)
        )
        rows.append((*means(arm), *_cost(arm), *printed, NONE if row.f1 is None else f"{row.f1:.4f}"))
    columns = ("Method", "Repeats", *NAMES.values(), *COST, *PAPER)
    note = f"{MEANS} {_COST_NOTE} The paper's values are of its own photographs: only the order compares."
    return Table(title, columns, tuple(rows), note)


def _cost(arm: Arm) -> tuple[str, ...]:
    """Writes the measured cost of a method's network, from the test of its first repeat, and of its training."""
    found = next((cost for result in arm.results if (cost := read_cost(result.run))), {})
    counts = [count_words(found[name]) if name in found else NONE for name in ("parameters", "multiply_adds")]
    pace = f"{found['ms_per_photograph']:.3g}" if "ms_per_photograph" in found else NONE
    took = f"{arm.minutes:.{0 if arm.minutes >= 10 else 1}f}" if math.isfinite(arm.minutes) else NONE
    return (*counts, pace, took)


def means(arm: Arm, prefix: str = "") -> tuple[str, ...]:
    """Writes a method's name, number of repeats and mean scores: one text for each of its columns.

    Args:
        arm: The method.
        prefix: ``lesion/`` for the scores of lesions.
    """
    cells = []
    for metric in _metrics():
        values = arm.values(f"{prefix}{metric}")
        values, text = values[np.isfinite(values)], _format(metric, _behind(arm))
        mean = text(float(values.mean())) if len(values) else NONE
        cells.append(f"{mean} ± {text(float(values.std(ddof=1)))}" if len(values) > 1 else mean)
    return (arm.title, str(len(arm.results)), *cells)


def _verdict(found: Comparison, metric: Metric) -> str:
    one = found.differences[metric]
    text = _signed(found.groups)
    numbers = f"{text(one.value)}, 95 % interval {_span(one.interval, text)}"
    return f"{SHORT[metric]} {one.verdict} ({numbers})"


def _comparison_table(comparisons: Sequence[Comparison], title: str, resamples: int) -> Table:
    rows = []
    several = len({found.against for found in comparisons}) > 1
    for found in comparisons:
        name = f"{found.title} against {found.against}" if several else found.title
        for metric in COMPARED:
            one = found.differences[metric]
            counts = (f"{found.gained} / {found.lost}", str(found.groups), str(found.photographs))
            rows.append((name, SHORT[metric], one.verdict, *_difference(one, _signed(found.groups)), *counts))
    more = corrected_resamples(resamples, len(comparisons))
    together = (
        f"once each for itself and once corrected so that all {len(comparisons)} hold together (Bonferroni; of {more} "
        "resamples)"
    )
    if len(comparisons) == 1:
        together = "one comparison alone: nothing is corrected"
    unit = comparisons[0].unit
    note = (
        "Differences on the photographs that both methods were tested on, all repeats together; 95 % intervals by "
        f"paired bootstrap over {unit}s ({resamples} resamples; where none differs from another, by both sides' own "
        f"intervals, Newcombe 1998, which also widen those of fewer than {FEW} {unit}s; where all {unit}s are "
        f"answered alike, Tango 1998), {together}. p: {unit}s "
        f"exchanged between the methods; exact for accuracy (McNemar's exact test where every {unit} has one "
        f"photograph), {resamples} random exchanges for macro F1; then corrected by Holm. Better or worse is said only "
        f"where the corrected interval excludes 0 and the corrected p is below 0.05. Gained / lost: {unit}s with more "
        "/ fewer right answers than the other method gave."
    )
    heads = ("Method", "Metric", "Verdict", "Difference", "95 % interval", "corrected interval", "p", "corrected p")
    return Table(title, (*heads, "Gained / lost", f"{unit.capitalize()}s", "Photographs"), tuple(rows), note)


def _difference(one: Difference, text: Callable[[float], str]) -> tuple[str, ...]:
    spans = (_span(one.interval, text), _span(one.corrected, text))
    return (text(one.value), *spans, _p(one.p_value), _p(one.p_corrected))


def _metrics() -> tuple[Metric, ...]:
    return tuple(sorted(METRICS, key=list(NAMES).index))


def _behind(arm: Arm) -> int:
    """Counts the groups behind an arm; a search over the loss, judged on validation, has no stored predictions."""
    return len(arm.counts) if len(arm.answers) else 0


def _marked(groups: int) -> str:
    return f"{groups} {MARK}" if groups < FEW else str(groups)


def _weak(behind: Iterable[int], unit: str) -> str:
    return f"{MARK} fewer than {FEW} {unit}s: these figures say little. " if min(behind, default=FEW) < FEW else ""


def _format(metric: str, groups: int) -> Callable[[float], str]:
    return _percent(groups) if "%" in NAMES[metric] else _fraction(groups)


def _percent(groups: int) -> Callable[[float], str]:
    return lambda value: f"{100 * value:.{digits(groups) - 2}f}"


def _fraction(groups: int) -> Callable[[float], str]:
    return lambda value: f"{value:.{digits(groups)}f}"


def _signed(groups: int) -> Callable[[float], str]:
    return lambda value: f"{value:+.{digits(groups)}f}"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def _span(interval: Interval, text: Callable[[float], str], between: str = " to ") -> str:
    if math.isnan(interval.low):
        return NONE
    return f"{text(interval.low)}{between}{text(interval.high)}"


def _with_interval(value: float, interval: Interval, text: Callable[[float], str]) -> str:
    return NONE if math.isnan(interval.low) else f"{text(value)} [{_span(interval, text, ', ')}]"
