"""Makes the table of tests on other data than a run's own division."""

from collections.abc import Iterator
from contextlib import suppress

from kd_convnext.common.counting import counted
from kd_convnext.data.manifest.units import GROUP, NO_GROUPS, with_units
from kd_convnext.evaluation.proportions import FEW, digits
from kd_convnext.evaluation.statistics import METRICS, count_groups, intervals, scores
from kd_convnext.experiment.report.analysis import Analysis, cell_name
from kd_convnext.experiment.report.results import read_predictions
from kd_convnext.experiment.report.tables import MARK, Table
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.tables import read_metrics

_SHOWN = ("accuracy", "recall_macro", "f1_macro")


def external_tests(analysis: Analysis) -> Table | None:
    """Judges every answer file below ``external/`` of the runs; None where there is none.

    Args:
        analysis: The numbers.
    """
    rows, old = [], []
    for title, folder in _folders(analysis):
        with suppress(OSError, ValueError):
            frame, names = read_predictions(folder.predictions)
            if not len(frame) or names != analysis.class_names:
                continue
            old += [] if GROUP in frame else [folder.path.name]
            counts = count_groups(with_units(frame), names)
            # Where the data lack a class, a mean over all classes would tell of that and not of the answers.
            present = counts.occurring
            values = scores(counts.total, present)
            spans = intervals(counts, analysis.settings.resamples, analysis.settings.seed, among=present)
            number, places = len(counts), digits(len(counts))
            cells = (
                f"{values[name]:.{places}f} [{spans[name].low:.{places}f}, {spans[name].high:.{places}f}]"
                for name in METRICS
                if name in _SHOWN
            )
            behind = f"{counted(number, counts.unit)} {MARK}" if number < FEW else counted(number, counts.unit)
            known = read_metrics(folder).get("test/leak_allowed")
            data = f"{folder.path.name}{' (lesions of the training are in it: no test)' if known else ''}"
            rows.append((title, data, str(len(frame)), behind, f"{len(present)} of {len(names)}", *cells))
    if not rows:
        return None
    note = (
        "Each row is one test of one network on other photographs, or another division, than it was trained with; per "
        "photograph, 95 % intervals by the unit. Test refuses lesions, patients and files that are known from the "
        "training. Macro means are over the classes that occur: compare them only where these are alike. "
        f"{MARK} fewer than {FEW} of them."
    )
    if old:
        note += f" {', '.join(dict.fromkeys(old))}: {NO_GROUPS}."
    heads = tuple(
        {"accuracy": "Accuracy", "recall_macro": "Macro recall", "f1_macro": "Macro F1"}[name]
        for name in METRICS
        if name in _SHOWN
    )
    return Table("Tests on other data", ("Run", "Data", "Photographs", "Unit", "Classes", *heads), tuple(rows), note)


def _folders(analysis: Analysis) -> Iterator[tuple[str, RunFolder]]:
    for result in analysis.results:
        for path in sorted(result.run.external.glob("*/predictions.csv")):
            yield cell_name(result.record), RunFolder(path.parent)
