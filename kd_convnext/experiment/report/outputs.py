"""Writes the outputs of an experiment: results.csv, tables.md, figures, report.html."""

from collections.abc import Sequence
from pathlib import Path

from kd_convnext.common.figures import print_writers
from kd_convnext.common.files import text_writer, write_all
from kd_convnext.common.tables import markdown_text
from kd_convnext.experiment.plan.record import CellRecord
from kd_convnext.experiment.report.analysis import Analysis, AnalysisOptions, analyse, cell_name
from kd_convnext.experiment.report.contents import tables_of_file
from kd_convnext.experiment.report.figures import all_figures
from kd_convnext.experiment.report.page import render
from kd_convnext.experiment.report.paper_values import REMARKS
from kd_convnext.experiment.report.results import results_table
from kd_convnext.experiment.report.tables import markdown, verdicts
from kd_convnext.experiment.report.wishes import NO_WISHES, Wishes
from kd_convnext.runs.tables import table_text


def write_outputs(
    out: Path,
    cells: Sequence[CellRecord],
    *,
    baseline: str = "convnext",
    best: str | None = None,
    seed: int = 0,
    bootstrap: int = 2000,
    title: str = "The paper's experiment",
    command: str | None = None,
    wishes: Wishes = NO_WISHES,
) -> Analysis:
    """Writes tables, figures and the report of some cells.

    Args:
        out: Folder of ``results.csv``, ``tables.md``, ``figures/`` (PNG and PDF) and ``report.html``; files of these
            names are replaced, together or not at all.
        cells: Any set of cells, also incomplete or failed ones: what is lacking is said.
        baseline: Key of the method that others are compared with.
        best: Key of the method whose classes are shown; by default the one with the best validation.
        seed: Of the resampling.
        bootstrap: Resamples of bootstrap and exchange test.
        title: Of the report.
        command: That made it, for the section on repeating.
        wishes: What is shown by choice.

    Returns:
        The numbers.

    Raises:
        ConfigError: The cells are on different classes, an option names another class, or a file cannot be written.
    """
    settings = AnalysisOptions(title, baseline, seed, bootstrap, command, wishes)
    analysis = analyse(cells, settings, best)
    figures = all_figures(analysis)
    writes = {
        out / "results.csv": text_writer(table_text(results_table(analysis.results, out))),
        out / "tables.md": text_writer(tables_text(analysis)),
    }
    for figure in figures:
        writes |= print_writers(out / "figures" / f"{figure.name}.png", figure.figure)
    # Last: the files of the figures settle what stands where in those of the page.
    writes[out / "report.html"] = lambda file: text_writer(render(analysis, figures))(file)
    write_all(writes)
    return analysis


def tables_text(analysis: Analysis) -> str:
    """Returns all tables as Markdown, with verdicts and remarks."""
    found = [f"# {markdown_text(analysis.settings.title)}", ""]
    sentences = verdicts([*analysis.teachers, *analysis.comparisons, *analysis.resolution])
    found += [*(f"- {markdown_text(text)}" for text in sentences), ""] if sentences else []
    found += [markdown(table) for table in tables_of_file(analysis)] or ["No cell has a result yet.", ""]
    failed = [f"{cell_name(record)} failed: {record.error}" for record in analysis.failed]
    if analysis.remarks or failed:
        found += ["## Remarks", "", *(f"- {markdown_text(text)}" for text in (*analysis.remarks, *failed)), ""]
    if analysis.of_family("ablation", "rival"):
        found += ["## About the paper's values", "", *(f"- {text}" for text in REMARKS), ""]
    return "\n".join(found)
