"""Counts what a manifest was understood to hold: photographs, regions, lesions and patients by class and part."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from kd_convnext.common.counting import counted
from kd_convnext.data.manifest.grouping import GroupBy, kept_together
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.data.manifest.splits import PARTS, Split, absent, missing_classes

FEW = 10
"""Groups of a class in a part below which its scores say little."""


def describe(manifest: Manifest, group_by: GroupBy = "known", split: Split | None = None) -> list[str]:
    """Formats the counts of a manifest as a small table, and warns of missing ids and small classes.

    Args:
        manifest: The photographs.
        group_by: What is kept together.
        split: Their division, where there is one.

    Returns:
        Lines of text.
    """
    table = manifest.table.assign(
        lesion=manifest.groups("lesion"),
        group=manifest.groups(group_by),
        part="" if split is None else split.parts,
    )
    given = bool(len(table)) and bool((table["split"] != "").all())
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
    lines += _aligned(rows)
    lines.append(f"kept together {kept_together(group_by)}")
    return lines + _remarks(table, manifest.class_names, parts[1:], divided=split is not None)


def _remarks(table: pd.DataFrame, class_names: Sequence[str], parts: Sequence[str], *, divided: bool) -> list[str]:
    remarks = []
    lesions, patients = (table["lesion_id"] != "").any(), (table["patient_id"] != "").any()
    if not lesions and not patients:
        remarks.append(
            "warning: no photograph names its lesion (lesion_id) or patient (patient_id): that one of them is "
            "in two parts cannot be excluded, and results may be too good"
        )
    elif not patients:
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


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = np.array([[len(cell) for cell in row] for row in rows]).max(axis=0).tolist()
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
