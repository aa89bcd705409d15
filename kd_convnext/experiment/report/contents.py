"""Lists the tables of a report in reading order."""

from collections.abc import Callable

from kd_convnext.experiment.report import clinical, tables
from kd_convnext.experiment.report.analysis import Analysis
from kd_convnext.experiment.report.tables import Table


def all_tables(analysis: Analysis) -> list[Table]:
    """Makes every table the cells allow, in reading order."""
    settings = analysis.settings
    makers: tuple[Callable[[Analysis], Table | None], ...] = (
        *(
            tables.ablation,
            tables.rivals,
            tables.runs,
            tables.pooled,
            tables.against_teachers,
            tables.compared,
            tables.per_class,
        ),
        lambda one: clinical.one_against_rest(one, settings.prevalence),
        *(tables.confusion, clinical.by_unit, tables.by_lesion, tables.crops, tables.resolution, tables.sweep),
    )
    found = [table for make in makers if (table := make(analysis)) is not None]
    return [*found, *clinical.subgroups(analysis, settings.by)]
