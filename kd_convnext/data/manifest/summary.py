"""Counts what a manifest was understood to hold: photographs, regions, lesions and patients by class and part."""

import shutil
from collections.abc import Sequence

import pandas as pd

from kd_convnext.common.counting import counted
from kd_convnext.data.manifest.grouping import GroupBy, kept_together
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.data.manifest.splits import PARTS, Split, absent, missing_classes

FEW = 10
"""Groups of a class in a part below which its scores say little."""

_GAP = "  "
"""Between columns of a table, and before its first."""

_READABLE, _SHORTEST = 25, 8
"""Letters of a class's name that are shown at least: in 80 columns, and in the narrowest terminal."""


def describe(manifest: Manifest, group_by: GroupBy = "known", split: Split | None = None) -> list[str]:
    """Formats the counts of a manifest as a small table, and warns of missing ids and small classes.

    Args:
        manifest: The photographs.
        group_by: What is kept together.
        split: Their division, where there is one.

    Returns:
        Lines of text; the table is no wider than the terminal, or 80 letters.
    """
    table = manifest.table.assign(
        lesion=manifest.groups("lesion"),
        group=manifest.groups(group_by),
        part="" if split is None else split.parts,
    )
    given = bool(len(table)) and manifest.parts_given
    parts: list[str] = ["all"]
    if split is not None:
        parts += [part for part in PARTS if (table["part"] == part).any()]
    elif given:
        table["part"] = table["split"]
        parts += [part for part in PARTS if (table["split"] == part).any()]
    lines = ["regions (photographs, lesions, patients, groups that are never divided):"]
    rows = [["class", *parts]]
    for name in (*manifest.class_names, "all"):
        own = table if name == "all" else table[table["label"] == name]
        rows.append([name, *(_counts(own if part == "all" else own[own["part"] == part]) for part in parts)])
    lines += _aligned(rows, shutil.get_terminal_size().columns)
    lines.append(f"kept together {kept_together(group_by, given)}")
    return lines + _remarks(table, manifest.class_names, parts[1:], divided=split is not None)


def _remarks(table: pd.DataFrame, class_names: Sequence[str], parts: Sequence[str], *, divided: bool) -> list[str]:
    remarks = []
    patients = (table["patient_id"] != "").any()
    unnamed = int(((table["lesion_id"] == "") & (table["patient_id"] == "")).sum())
    if unnamed == len(table):
        remarks.append(
            "warning: no photograph names its lesion (lesion_id) or patient (patient_id): that one of them is "
            "in two parts cannot be excluded, and results may be too good"
        )
    elif unnamed:
        remarks.append(
            f"warning: {unnamed} of {counted(len(table), 'row')} name neither lesion nor patient: each counts as a "
            "lesion of its own, and where it is none, one lesion may be in two parts"
        )
    if unnamed < len(table) and not patients:
        remarks.append("note: no patient_id: that one patient is in two parts cannot be excluded")
    if not class_names or (table["label"] == "").all():
        return remarks
    sizes = {name: int(table.loc[table["label"] == name, "group"].nunique()) for name in class_names}
    smallest = min(sizes, key=lambda name: sizes[name])
    remarks.append(f"smallest class: {smallest}, {counted(sizes[smallest], 'group')}")
    few = [f"{name} ({count})" for name, count in sizes.items() if count < len(PARTS)]
    if few:
        remarks.append(f"warning: too few groups for training, validation and test: {', '.join(few)}")
    for part in parts:
        own = table[table["part"] == part]
        counts = {name: int(own.loc[own["label"] == name, "group"].nunique()) for name in class_names}
        weak = [f"{name} ({count})" for name, count in counts.items() if count < FEW]
        if weak and part != "train":
            use = "choosing the best epoch and calibrated sets" if part == "val" else "scores of single classes"
            remarks.append(f"note: fewer than {FEW} groups in {part}, little for {use}: {', '.join(weak)}")
    if divided:  # said when it was divided
        return remarks
    missing = missing_classes(table["label"].tolist(), table["part"].tolist(), class_names)
    return remarks + [f"warning: {absent(part, names)}" for part, names in missing.items()]


def _counts(rows: pd.DataFrame) -> str:
    patients = rows.loc[rows["patient_id"] != "", "patient_id"].nunique()
    known = str(patients) if patients else "?"
    lesions = rows["lesion"].nunique() if (rows["lesion_id"] != "").any() else "?"
    return f"{len(rows)} ({rows['photograph'].nunique()}, {lesions}, {known}, {rows['group'].nunique()})"


def _aligned(rows: Sequence[Sequence[str]], columns: int) -> list[str]:
    """Aligns a table; parts that do not fit beside the others stand below them, and long names lose their middle."""
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    part = max(others) + len(_GAP)
    room = columns - len(_GAP)
    # Of a long name so much that two parts are side by side; in a narrow terminal, that one has room.
    first = min(first, max(_READABLE, room - 2 * part), max(_SHORTEST, room - part))
    beside = max(1, (room - first) // part)
    lines = []
    for begin in range(0, len(others), beside):
        chosen = slice(begin, begin + beside)
        for row in rows:
            cells = [cell.ljust(width) for cell, width in zip(row[1:][chosen], others[chosen], strict=True)]
            lines.append(_GAP + _GAP.join([_shortened(row[0], first).ljust(first), *cells]).rstrip())
    return lines


def _shortened(name: str, length: int) -> str:
    """Replaces the middle of a name that is too long by a mark: classes are often alike at their beginnings."""
    if len(name) <= length:
        return name
    end = (length - 1) // 2
    return f"{name[: length - 1 - end]}…{name[-end:]}"
