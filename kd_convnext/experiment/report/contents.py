"""Lists the tables of a report in reading order."""

from collections.abc import Callable

from kd_convnext.experiment.report import clinical, tables
from kd_convnext.experiment.report.analysis import Analysis
from kd_convnext.experiment.report.enlarging import crops
from kd_convnext.experiment.report.external import external_tests
from kd_convnext.experiment.report.learning import learning_table
from kd_convnext.experiment.report.tables import Table
from kd_convnext.experiment.report.thresholds import at_thresholds


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
        lambda one: clinical.one_against_rest(one, settings.wishes.prevalence),
        *(
            at_thresholds,
            learning_table,
            tables.confusion,
            clinical.by_unit,
            tables.by_lesion,
            crops,
            tables.resolution,
            tables.sweep,
        ),
    )
    found = [table for make in makers if (table := make(analysis)) is not None]
    return [*found, *clinical.subgroups(analysis, settings.wishes.by)]


def tables_of_file(analysis: Analysis) -> list[Table]:
    """Makes the tables of ``tables.md``: all, and tests on other data, which the page shows in their own section."""
    external = external_tests(analysis)
    return [*all_tables(analysis), *([] if external is None else [external])]
