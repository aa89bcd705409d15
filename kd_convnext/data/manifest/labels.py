"""Checks the labels of a manifest."""

import re
import unicodedata
import warnings
from collections.abc import Sequence

import pandas as pd

from kd_convnext.common.counting import counted
from kd_convnext.common.nearest import nearest
from kd_convnext.data.manifest.checks import per_row
from kd_convnext.data.manifest.ids import is_cell_error, normal_id
from kd_convnext.errors import Finding, ManifestWarning

_RARE, _FREQUENT = 2, 20  # a label of so many rows at most beside one of so many times more may be a slip
# Small forms of signs, Greek and Cyrillic letters, and the Latin letters that these or their capitals look like.
_LOOKS = str.maketrans("l1|0αβεηικμνορτχавеікмнорстхуѕ", "iiioabehikmnoptxabeikmhopctxys")  # noqa: RUF001
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters, breaks of lines, and marks of the direction of writing."""
_CELL_DATE = re.compile(r"(\d{4}-\d\d-\d\d )?\d\d:\d\d:\d\d")
_LONGEST_LABEL, _SHOWN = 120, 30  # characters; figures grow with their labels


def canonical(names: Sequence[str]) -> tuple[str, ...]:
    """Returns names of classes in the Unicode form in which manifests have them (NFC), for comparison.

    Args:
        names: As typed, or as a network knows them: macOS names folders with accents as separate characters.
    """
    return tuple(unicodedata.normalize("NFC", name) for name in names)


def label_findings(table: pd.DataFrame, classes: Sequence[str] | None, place: str) -> list[Finding]:
    """Checks that every row has a label, a known one, and that there are two classes at least.

    Args:
        table: Columns where, image, label.
        classes: The only labels allowed, or None for any.
        place: The manifest's name, for findings about the whole.

    Returns:
        The findings.
    """
    findings = per_row(
        table[table["label"] == ""],
        lambda row: f"the label is empty ({row.image})",
        "Fill in the class; photographs in a folder belong into the folder of their class.",
    )
    findings += _unprintable_labels(table)
    findings += unknown_label_findings(table, classes)
    present = sorted(set(table["label"]) - {""})
    if len(present) == 1:
        what = f"there is only one class, {present[0]!r}"
        findings.append(Finding(place, what, "A classifier needs photographs of two classes or more."))
    _warn_of_spellings(table["label"].value_counts(), place)
    return findings


def _unprintable_labels(table: pd.DataFrame) -> list[Finding]:
    """Refuses labels that no table and no figure can show, and what a spreadsheet made of some."""
    labels = set(table["label"])
    long = {label for label in labels if len(label) > _LONGEST_LABEL}
    broken = {label for label in labels - long if _UNPRINTABLE.search(label)}
    errors = {label for label in labels if is_cell_error(label)}
    dates = {label for label in labels if _CELL_DATE.fullmatch(label)}
    return [
        *per_row(
            table[table["label"].isin(long)],
            lambda row: f"the label {row.label[:_SHOWN]!r}... has {len(row.label)} characters",
            f"Name classes in {_LONGEST_LABEL} at most.",
        ),
        *per_row(
            table[table["label"].isin(broken)],
            lambda row: f"the label {row.label!r} holds a line break or another control character",
            "Take it out.",
        ),
        *per_row(
            table[table["label"].isin(errors)],
            lambda row: f"the label {row.label!r} is an error of the spreadsheet",
            "Mend the formula, or write the class.",
        ),
        *per_row(
            table[table["label"].isin(dates)],
            lambda row: f"the label {row.label!r} is a date or a time that the spreadsheet made of what was typed",
            "Format the column as text, and write the class.",
        ),
    ]


def _warn_of_spellings(counts: "pd.Series[int]", place: str) -> None:
    """Warns of labels that a person reads as one, and of rare ones that are nearly spelt as a frequent one."""
    present = sorted(set(counts.index) - {""})
    read = {label: normal_id(" ".join(label.split())).translate(_LOOKS) for label in present}
    spellings = pd.Series(present, dtype=object).groupby(list(read.values())).agg(list)
    for same in spellings[spellings.map(len) > 1]:
        what = (
            "labels that differ in capitals, blanks, zeros or letters that look alike (I l 1, O 0, foreign ones) only "
            "are different classes"
        )
        warnings.warn(f"{place}: {what}: {same}: is it a slip?", ManifestWarning, stacklevel=4)
    for rare in present:
        frequent = [name for name in present if counts[name] >= _FREQUENT * counts[rare] and read[name] != read[rare]]
        close = nearest(rare, frequent, cutoff=0.75)
        # "Grade 1" beside "Grade 2" is no slip.
        if close and counts[rare] <= _RARE and re.sub(r"[0-9]", "", rare) != re.sub(r"[0-9]", "", close):
            what = f"{place}: the label {rare!r} stands in {counted(counts[rare], 'row')}, {close!r} in {counts[close]}"
            warnings.warn(f"{what}: is it a slip? It counts as a class of its own", ManifestWarning, stacklevel=4)


def unknown_label_findings(table: pd.DataFrame, classes: Sequence[str] | None) -> list[Finding]:
    """Checks labels (where given) against the classes (where given)."""
    if classes is None:
        return []
    unknown = (table["label"] != "") & ~table["label"].isin(list(classes))
    remedy = f"Correct it or name it among the classes: {', '.join(classes)}."
    return per_row(table[unknown], lambda row: f"unknown label {row.label!r}", remedy)
