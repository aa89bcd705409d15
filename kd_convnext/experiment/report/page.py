"""Renders the report of an experiment or a run as one HTML page that needs no network and prints well."""

import base64
import math
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from kd_convnext._version import __version__
from kd_convnext.common.figures import as_svg
from kd_convnext.common.files import write_text
from kd_convnext.data.manifest.grouping import kept_together
from kd_convnext.evaluation.proportions import FEW
from kd_convnext.experiment.plan.record import setting_words
from kd_convnext.experiment.report import checklist, tables
from kd_convnext.experiment.report import paper_values as reference
from kd_convnext.experiment.report.analysis import Analysis, cell_name
from kd_convnext.experiment.report.contents import all_tables
from kd_convnext.experiment.report.descriptions import BY_MACRO_F1, DESCRIBED, describe, environments, epoch_choice
from kd_convnext.experiment.report.external import external_tests
from kd_convnext.experiment.report.figures import NamedFigure
from kd_convnext.experiment.report.splits import Division
from kd_convnext.experiment.report.tables import Table

_WITHIN = "One collection of photographs, divided within itself: nothing is said of photographs from elsewhere."
_ELSEWHERE = "Tests on other data have a section of their own; where these come from only the authors know."
_PARTS = {"train": "training", "val": "validation", "test": "test"}


def write_report(path: Path, analysis: Analysis, figures: Sequence[NamedFigure]) -> None:
    """Writes the page.

    Args:
        path: The HTML file, replaced at once.
        analysis: The numbers.
        figures: What ``all_figures`` drew.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_text(path, render(analysis, figures))


def render(analysis: Analysis, figures: Sequence[NamedFigure]) -> str:
    """Returns the page as text. Everything that comes from users' files is escaped."""
    environment = Environment(
        loader=PackageLoader("kd_convnext.experiment.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.j2").render(_context(analysis, figures))


def _context(analysis: Analysis, figures: Sequence[NamedFigure]) -> dict[str, Any]:
    comparisons = [*analysis.teachers, *analysis.comparisons, *analysis.resolution]
    return {
        "settings": analysis.settings,
        "version": __version__,
        "made": date.today().isoformat(),
        "question": _question(analysis),
        "finding": tables.finding(analysis),
        "answers": tables.verdicts(comparisons),
        "compared": bool(comparisons),
        "cells": Counter("finished" if result.finished else "failed" for result in analysis.results),
        "parts": _parts_table(analysis),
        "unit": analysis.unit,
        "drawn": not any(division.divided.given for division in analysis.divisions),
        "leaks": [_leak_line(division) for division in analysis.divisions],
        "leaking": any(sum(division.leaks.values()) for division in analysis.divisions),
        "methods": Table("", DESCRIBED, tuple(describe(arm) for arm in analysis.arms), ""),
        # The matrix is shown once, as a figure; tables.md has its numbers.
        "external": external_tests(analysis),
        "tables": [table for table in all_tables(analysis) if not table.title.startswith("Confusion matrix")],
        "figures": [(figure, _data_uri(figure.figure)) for figure in figures],
        "best": analysis.best,
        "epoch_choice": epoch_choice(analysis.arms),
        "by_macro_f1": BY_MACRO_F1,
        "chosen_by": analysis.chosen_by,
        "limits": _limits(analysis),
        "paper": reference.REMARKS if _like_the_paper(analysis) else (),
        "environments": environments(analysis.results),
        "cell_table": _cell_table(analysis),
        "failed": [f"{cell_name(record)}: {record.error}" for record in analysis.failed],
        "remarks": analysis.remarks,
        "checklist": checklist.filled(analysis),
    }


def _like_the_paper(analysis: Analysis) -> bool:
    return bool(analysis.of_family("ablation", "rival"))


def _divided(times: int) -> str:
    return "Divided once" if times == 1 else f"Divided {times} times"


def _question(analysis: Analysis) -> str:
    if analysis.of_family("ablation"):
        return (
            "Does a student that learns from a teacher, by logits, by features or by both, classify these "
            "photographs better than the same network alone, than its teacher and than other networks, and is the "
            "difference larger than what the choice of test lesions alone would make?"
        )
    if len(analysis.methods) > 1:
        return f"How do these runs compare with {analysis.settings.baseline} on the same test photographs?"
    return "How well does this network answer for the photographs of its test part, and how sure is that?"


def _parts_table(analysis: Analysis) -> Table | None:
    """Photographs and lesions of each class in each part of each repeat."""
    if not analysis.divisions:
        return None
    names = analysis.class_names or sorted(set(analysis.divisions[0].table["label"]))
    parts = [(division, part) for division in analysis.divisions for part in _PARTS]
    rows = [
        (name or "all", *(f"{one.photographs(part, name)} ({one.lesions(part, name)})" for one, part in parts))
        for name in (*names, None)
    ]
    heads = [f"Repeat {division.repeat}, {_PARTS[part]}" for division, part in parts]
    left_out = [f" Repeat {one.repeat}: {one.left_out}" for one in analysis.divisions if one.left_out]
    note = f"Regions of interest (photographs) and, in brackets, lesions.{''.join(left_out)}"
    return Table("Classes and parts", ("Class", *heads), tuple(rows), note)


def _leak_line(division: Division) -> str:
    found = ", ".join(f"{count} {kind}" for kind, count in division.leaks.items())
    kept = (
        f"Kept together {kept_together(division.group_by, division.divided.given)}; split sha256 {division.hash[:16]}."
    )
    unnamed = [f"{kind}s are not named" for kind in ("lesion", "patient") if not division.names(kind)]
    if division.unnamed == len(division.table):
        unnamed = ["no photograph names its lesion, so a leak could not be seen"]
    return f"Repeat {division.repeat}: {'; '.join([f'{found} in more than one part', *unnamed])}. {kept}"


def _limits(analysis: Analysis) -> list[str]:
    unit = analysis.unit
    found = [
        "For research. Not a medical device; nothing here may decide about a patient.",
        _ELSEWHERE if external_tests(analysis) else _WITHIN,
        f"Intervals and tests are about the choice of test {unit}s, for the networks as trained. Repeats share most of "
        f"their training {unit}s, so the standard deviation over repeats is smaller than that over new collections.",
    ]
    repeats = {result.record.repeat for result in analysis.results if result.finished and result.part == "test"}
    if len(repeats) < 5:
        times = f"{len(repeats)} of the paper's five repeats" if _like_the_paper(analysis) else _divided(len(repeats))
        found.append(f"{times}: little is known of how results vary between divisions.")
    if analysis.best is not None and len(analysis.best.answers):
        counts = zip(analysis.class_names, analysis.best.counts.per_class(), strict=True)
        few = [f"{name} ({count})" for name, count in counts if count < FEW]
        if few:
            found.append(f"Classes with fewer than {FEW} tested {unit}s: {', '.join(few)}. Their figures are weak.")
    if analysis.divisions and not any(division.names("patient") for division in analysis.divisions):
        found.append("Patients are not named: that one patient is in training and test cannot be excluded.")
    unnamed = max((division.unnamed for division in analysis.divisions), default=0)
    if unnamed:
        found.append(
            f"Photographs that do not name their lesion: {unnamed}. Each counts as a lesion of its own: leaks among "
            "them cannot be seen, and intervals may be too narrow."
        )
    if any(sum(division.leaks.values()) for division in analysis.divisions):
        found.append("Lesions, patients or photographs are in more than one part: results are too good to be true.")
    if analysis.failed:
        found.append(f"Failed cells: {len(analysis.failed)}. Comparisons use the repeats that both methods finished.")
    return found


def _cell_table(analysis: Analysis) -> Table:
    rows = []
    for result in analysis.results:
        record = result.record
        named = (record.title, setting_words(record.setting))
        shared = (*named, str(record.repeat), str(record.seed), record.config_hash[:12])
        minutes = f"{record.seconds / 60:.1f}" if math.isfinite(record.seconds) else tables.NONE
        split = next((one.hash[:16] for one in analysis.divisions if one.is_of(result)), tables.NONE)
        rows.append((*shared, split, record.status, minutes))
    columns = ("Method", "Setting", "Repeat", "Seed", "Configuration", "Split", "Status", "Minutes")
    note = "Hashes are shortened; each cell's folder holds its configuration, split, predictions and environment."
    return Table("Cells", columns, tuple(rows), note)


def _data_uri(figure: Figure) -> str:
    """Returns a figure as an image that is part of the page: drawn lines, sharp on paper."""
    return f"data:image/svg+xml;base64,{base64.b64encode(as_svg(figure)).decode('ascii')}"
