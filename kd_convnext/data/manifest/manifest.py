"""Reads and checks the manifest, the list of photographs."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from kd_convnext.common.counting import counted
from kd_convnext.data.manifest import checks
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.data.manifest.columns import BOX_COLUMNS
from kd_convnext.data.manifest.grouping import GroupBy, group_names
from kd_convnext.data.manifest.ids import tidy_ids
from kd_convnext.data.manifest.labels import canonical, label_findings, unknown_label_findings
from kd_convnext.data.manifest.source import Source, read_source
from kd_convnext.errors import Finding, ManifestError, ManifestWarning

PAPER_CLASSES = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")
"""The paper's classes in the paper's order."""

_COLUMNS = [
    *("row", "image", "label", "lesion_id", "patient_id", "x", "y", "width", "height", "split"),
    *("image_width", "image_height", "photograph", "alike"),
]


@dataclass(frozen=True, eq=False)
class Manifest:
    """A checked table of photographs, boxes, labels, lesions and patients.

    Attributes:
        path: The CSV file, or the folder of class folders.
        root: The folder that `image` is relative to.
        table: One row per region of interest, index 0..N-1. Columns: row (line number in the CSV, header = 1;
            a running number for a folder), image (path with /), label ("" where none is needed), lesion_id,
            patient_id ("" = unknown), x, y, width, height (Int64 pixels, NA = whole photograph), split ("" or
            train, val, test), image_width, image_height (pixels after EXIF rotation), photograph (the image,
            or the first of several files with the same bytes), alike (the first of near-identical
            photographs; "" where there is none, and of photographs for prediction).
        class_names: The classes in the order of the model's outputs.
        skipped: One finding for each unreadable photograph that was left out.
    """

    path: Path
    root: Path
    table: pd.DataFrame
    class_names: tuple[str, ...]
    skipped: tuple[Finding, ...] = ()

    def __len__(self) -> int:
        """Returns the number of regions of interest."""
        return len(self.table)

    @property
    def name(self) -> str:
        """Returns the file's or folder's name, as findings about the whole begin."""
        return self.path.name or str(self.path)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """Positions in `class_names`, int64 [N]; -1 where the row has no label."""
        return pd.Index(list(self.class_names)).get_indexer(pd.Index(self.table["label"])).astype(np.int64)

    @property
    def parts_given(self) -> bool:
        """Whether every row names its part in the column `split`."""
        return bool((self.table["split"] != "").all())

    def class_counts(self) -> dict[str, int]:
        """Counts the regions of each class, in the order of `class_names`."""
        counts = np.bincount(self.labels[self.labels >= 0], minlength=len(self.class_names))
        return {name: int(count) for name, count in zip(self.class_names, counts, strict=True)}

    def groups(self, group_by: GroupBy) -> NDArray[np.str_]:
        """Names the group of each row; rows of one group must never be in two parts.

        Rows that share a photograph (or files of the same bytes) are always one group. By lesion, so are rows
        of one lesion; by patient, also rows of one patient; by all that is known, also rows of near-identical
        photographs. Chains count: two lesions on one photograph make
        one group. A row without an id is grouped by what else it has.

        Args:
            group_by: What must not be divided.

        Returns:
            str [N], such as "lesion:L7", "patient:P3" or "image:images/a.jpg": the largest unit's first name. Not
            writable: worked out once.
        """
        if group_by not in self._groups:
            names = group_names(self.table, group_by)
            names.setflags(write=False)
            self._groups[group_by] = names
        return self._groups[group_by]

    @cached_property
    def _groups(self) -> dict[GroupBy, NDArray[np.str_]]:
        return {}

    def image_path(self, i: int) -> Path:
        """Returns the photograph of row i (0..N-1)."""
        return self.root / str(self.table.at[i, "image"])

    def box(self, i: int) -> Box | None:
        """Returns the region of row i (0..N-1), None for the whole photograph."""
        values: list[Any] = [self.table.at[i, name] for name in BOX_COLUMNS]
        return None if pd.isna(values[0]) else Box(*(int(value) for value in values))

    def where(self, i: int) -> str:
        """Names row i (0..N-1) as findings do: "manifest.csv, row 17", or the path in a folder."""
        if self.path == self.root:
            return str(self.table.at[i, "image"])
        return f"{self.path.name}, row {int(self.table['row'].iloc[i])}"


def read_manifest(
    path: str | Path,
    *,
    classes: Sequence[str] | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    require_labels: bool = True,
    group_by: GroupBy = "known",
    columns: str | None = None,
) -> Manifest:
    """Reads and checks a manifest: a CSV file, or a folder with one folder of photographs per class.

    The CSV (comma, semicolon or tab; UTF-8 or UTF-16; or an .xlsx file) has the columns image (relative to the
    table) and label; optional lesion_id, patient_id, x, y, width, height (pixels; several rows per photograph
    allowed) and split (train, val, test). Headers of all photographs are read; pixels only to find near-identical
    ones. Warns (once each) of lesions with several labels or patients, of ids spelt in several ways, of photographs
    left out, of rare labels that look misspelt, and of columns that are not used.

    Args:
        path: The CSV file or the folder.
        classes: Class names in the order of the model's outputs; a label outside is an error. By default the
            labels found: in the paper's order where they are the paper's five, else sorted.
        on_error: "skip" leaves unreadable photographs out (`Manifest.skipped`); other problems still raise.
        require_labels: False for prediction: empty labels, one class or no label column are right then.
        group_by: What must not be in two parts of the `split` column. "known" and "patient": one patient, lesion or
            photograph; "lesion": a patient may be; "image": a lesion may be.
        columns: Other names of the columns: "image=file,label=diagnosis". Of boxes given by their edges:
            "x=xmin,y=ymin,right=xmax,bottom=ymax"; "ignore=case" leaves a column out that looks like an id.

    Returns:
        The checked manifest.

    Raises:
        ManifestError: With every problem of every row, its place and its remedy.
    """
    # As labels are; the names of a network from before may be in another form (`canonical`).
    classes = None if classes is None else canonical(classes)
    source = read_source(Path(path).expanduser(), require_labels=require_labels, columns=columns)
    place = source.path.name or str(source.path)
    table, findings, unreadable = _checked(source, place, classes, require_labels, group_by)
    if on_error == "raise":
        findings += unreadable.values()
    kept = table[~table["image"].isin(unreadable)]
    class_names = _class_names(table, classes)
    if on_error == "skip" and not findings:
        findings += _lost(kept, class_names if classes is None else (), place, unreadable)
    if findings:
        raise ManifestError(findings)
    if unreadable:
        _warn_of_skipped(len(table) - len(kept), unreadable, place)
    _warn_of_divided(kept, place, group_by)
    checks.warn_of_mixed_ids(kept, place)
    checks.warn_of_twins(kept, place, group_by)
    return Manifest(source.path, source.root, _tidy(kept), class_names, tuple(unreadable.values()))


def _checked(
    source: Source, place: str, classes: Sequence[str] | None, require_labels: bool, group_by: GroupBy
) -> tuple[pd.DataFrame, list[Finding], dict[str, Finding]]:
    """Returns the table with numbers for boxes and facts of files, all findings, and the unreadable photographs."""
    table, box_findings = checks.parse_boxes(tidy_ids(source.table, place))
    table["split"] = table["split"].str.lower()
    findings = [*source.findings, *_class_findings(classes), *checks.empty_path_findings(table), *box_findings]
    if require_labels and source.labelled:
        findings += label_findings(table, classes, place)
    elif source.labelled:
        findings += unknown_label_findings(table, classes)
    table, unreadable = checks.add_file_facts(table, source.root, likeness=require_labels)
    findings += checks.outside_findings(table) + checks.split_findings(table)
    if not source.findings:  # boxes that are not read as such would all be the whole photograph
        findings += checks.repeated_findings(table)
    if require_labels:  # copies are leaks between parts; two photographs to be answered for may be the same
        findings += checks.copy_findings(table)
    findings += checks.crossing_findings(table, _indivisible(group_by))
    return table, findings, unreadable


def _indivisible(group_by: GroupBy) -> list[tuple[str, str]]:
    keys = [("lesion_id", "lesion"), ("image", "photograph"), ("patient_id", "patient")]
    return {"image": keys[1:2], "lesion": keys[:2], "patient": keys, "known": keys}[group_by]


def _class_findings(classes: Sequence[str] | None) -> list[Finding]:
    if classes is None or (len(set(classes)) == len(classes) and len(classes) > 1 and "" not in classes):
        return []
    return [Finding("classes", f"{list(classes)} is not a list of classes", "Name two or more, each once.")]


def _class_names(table: pd.DataFrame, classes: Sequence[str] | None) -> tuple[str, ...]:
    if classes is not None:
        return tuple(classes)
    present = set(table["label"]) - {""}
    return PAPER_CLASSES if present == set(PAPER_CLASSES) else tuple(sorted(present))


def _lost(kept: pd.DataFrame, class_names: Sequence[str], place: str, unreadable: dict[str, Finding]) -> list[Finding]:
    """Checks that skipped photographs leave rows, and all classes."""
    if kept.empty:
        remedy = "Check that the paths are relative to the manifest."
        return [Finding(place, "no photograph could be read", remedy), *unreadable.values()]
    gone = [name for name in class_names if name not in set(kept["label"])]
    if not gone:
        return []
    what = f"no photograph of {', '.join(gone)} could be read"
    return [Finding(place, what, "Restore some, or delete the rows."), *unreadable.values()]


def _warn_of_skipped(rows: int, unreadable: dict[str, Finding], place: str) -> None:
    first = next(iter(unreadable.values()))
    number = f"{counted(len(unreadable), 'unreadable photograph')} ({counted(rows, 'row')})"
    warnings.warn(f"{place}: {number} left out; the first: {first}", ManifestWarning, stacklevel=3)


def _warn_of_divided(table: pd.DataFrame, place: str, group_by: GroupBy) -> None:
    for column, word, allowing in (("lesion_id", "lesion", ("image",)), ("patient_id", "patient", ("image", "lesion"))):
        divided = checks.crossing_findings(table, [(column, word)]) if group_by in allowing else []
        if divided:
            message = f"{place}: {counted(len(divided), word)} in more than one part, as grouping by {group_by} allows"
            warnings.warn(f"{message}; metrics will be too good.", ManifestWarning, stacklevel=3)
    twins = checks.crossing_findings(table, [("alike", "near-identical photograph")])
    if twins:
        message = (
            f"{place}: {counted(len(twins), 'near-identical photograph')} in more than one part of its split column"
        )
        warnings.warn(f"{message} (first: {twins[0].what}); metrics may be too good.", ManifestWarning, stacklevel=3)


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    return table[_COLUMNS].reset_index(drop=True)
