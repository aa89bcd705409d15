"""Tabulates the best method at thresholds that a reader chooses for single classes."""

import math

from kd_convnext.evaluation.operating import Share, operating_point
from kd_convnext.evaluation.proportions import FEW, digits, with_interval
from kd_convnext.evaluation.utility import net_benefit, predictive_intervals, predictive_values
from kd_convnext.experiment.report.analysis import Analysis
from kd_convnext.experiment.report.clinical import ranking_of, shares_of
from kd_convnext.experiment.report.tables import MARK, NONE, Table


def at_thresholds(analysis: Analysis) -> Table | None:
    """Makes the table of sensitivity, specificity, predictive values and net benefit at ``--thresholds``.

    Args:
        analysis: The numbers; its settings hold thresholds and prevalence.
    """
    arm, chosen = analysis.best, analysis.settings.wishes.thresholds
    if arm is None or not len(arm.answers) or not chosen:
        return None
    behind = dict(zip(arm.class_names, arm.counts.per_class().tolist(), strict=True))
    prevalence = shares_of(arm, analysis.settings.wishes.prevalence)
    rows = []
    for name, threshold in chosen:
        ranking, number = ranking_of(arm, name), behind[name]
        point, places = operating_point(ranking, threshold), digits(number)
        share = prevalence[name]
        values = predictive_values(point.sensitivity.value, point.specificity.value, share)
        spans = predictive_intervals(point.sensitivity.interval, point.specificity.interval, share)
        benefit = net_benefit(point.sensitivity.value, point.specificity.value, share, threshold)
        shares = (point.sensitivity, point.specificity, *map(Share, values, spans))
        rows.append(
            (
                name,
                f"{number} {MARK}" if number < FEW else str(number),
                f"{threshold:g}",
                f"{point.called} of {len(ranking.scores)}",
                *(with_interval(one.value, one.interval, places) for one in shares),
                NONE if math.isnan(benefit) else f"{benefit:+.{places}f}",
            )
        )
    unit = arm.counts.unit
    note = (
        f"{arm.title}, per photograph: the class is called where its probability reaches the threshold, whatever the "
        f"other classes have; exact 95 % intervals for as many trials as the {unit}s are worth. Predictive values and "
        "net benefit (true positives a case, Vickers & Elkin 2006) at the prevalence of --prevalence, else that of "
        f"the test {unit}s. A threshold that was chosen by looking at these photographs flatters itself. "
        f"{MARK} fewer than {FEW} {unit}s."
    )
    heads = ("Class", arm.counts.head, "Threshold", "Called", "Sensitivity", "Specificity", "PPV", "NPV", "Net benefit")
    return Table("At chosen thresholds", heads, tuple(rows), note)
