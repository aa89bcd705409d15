"""Prints what a test or a fit has found: a table of a dozen lines, and the best epoch with its interval."""

import math

from kd_convnext.common.console import duration
from kd_convnext.common.counting import counted
from kd_convnext.evaluation.proportions import FEW, digits, with_interval
from kd_convnext.evaluation.statistics import GroupCounts, Metric, class_intervals, class_scores, intervals, scores

RESAMPLES = 500
"""Of the bootstrap behind the printed intervals."""

_NAMES: dict[Metric, str] = {
    "accuracy": "accuracy",
    "precision_macro": "macro precision",
    "recall_macro": "macro recall",
    "f1_macro": "macro F1",
}
_WIDEST = 24


def score_lines(
    part: str, photographs: GroupCounts, lesions: GroupCounts | None, class_names: tuple[str, ...]
) -> list[str]:
    """Makes the table that a test prints.

    Args:
        part: Of the data.
        photographs: The answers about photographs, by group.
        lesions: The answers about lesions, by group; None where nothing is known of them.
        class_names: K classes.

    Returns:
        Lines of at most 80 characters: four metrics per photograph and per lesion with their 95 % intervals, then
        each class, its recall with interval; three digits at most, classes with fewer than ten groups marked.
    """
    number, unit = len(photographs), photographs.unit
    judged = f"{counted(photographs.photographs, 'photograph')} of {counted(number, unit)}"
    lines = [f"{part.capitalize()} part: {judged}, 95 % intervals {photographs.by}"]
    columns = [photographs] if lesions is None else [photographs, lesions]
    heads = ["per photograph", "per lesion"][: len(columns)]
    lines.append(f"  {'':<16}" + "".join(f"{head:<24}" for head in heads).rstrip())
    values = [scores(one.total) for one in columns]
    spans = [intervals(one, RESAMPLES, 0) for one in columns]
    for metric, name in _NAMES.items():
        cells = [
            f"{with_interval(float(value[metric]), span[metric], digits(number)):<24}"
            for value, span in zip(values, spans, strict=True)
        ]
        lines.append(f"  {name:<16}" + "".join(cells).rstrip())
    classes, behind = class_scores(photographs.total), photographs.per_class()
    by_class = class_intervals(photographs)
    lines.append(f"  {'class':<{_WIDEST}}{f'{unit}s':>9}{'precision':>11}{'recall':>9}{'F1':>23}")
    for k, name in enumerate(class_names):
        places, mark = digits(int(behind[k])), "†" if behind[k] < FEW else " "
        # Of a class that nothing was labelled or predicted as, nothing is known.
        known = {score: not math.isnan(found[k].low) for score, found in by_class.items()}
        precision, f1 = (f"{classes[one][k]:.{places}f}" if known[one] else "-" for one in ("precision", "f1"))
        recall = with_interval(float(classes["recall"][k]), by_class["recall"][k], places)
        recall = recall if known["recall"] else "-"
        short = name if len(name) < _WIDEST else f"{name[: _WIDEST - 3]}.."
        lines.append(f"  {short:<{_WIDEST}}{behind[k]:>8}{mark}{precision:>11}    {recall:<20}{f1:>8}")
    if (behind < FEW).any():
        lines.append(f"  † fewer than {FEW} {unit}s: these figures say little")
    return lines


def best_epoch_line(best: tuple[int, GroupCounts] | None, seconds: float) -> str:
    """Returns a line on the best epoch, its score with interval, and the time of the fit.

    Args:
        best: The epoch, counted from 0 as in ``metrics.csv``, and its validation answers by group; None where it
            lies before what this fit has gone on from.
        seconds: Of the fit.
    """
    took = f"The fit took {duration(seconds)}."
    if best is None:
        return f"No epoch since the fit went on is better than the best before. {took}"
    epoch, counts = best
    span = intervals(counts, RESAMPLES, 0)["f1_macro"]
    value = with_interval(float(scores(counts.total)["f1_macro"]), span, digits(len(counts)))
    behind = counted(len(counts), f"validation {counts.unit}")
    return f"Best epoch {epoch}: macro F1 {value}, 95 % {counts.by}, {behind}. {took}"
