"""Reads a CSV file or a folder of class folders into one table of text, with the findings about its form."""

import os
import posixpath
import unicodedata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kd_convnext.common.counting import counted
from kd_convnext.common.tables import read_records
from kd_convnext.data.manifest.columns import (
    BOX_COLUMNS,
    CORNERS,
    IN_A_FIT,
    TEXT_COLUMNS,
    lacking,
    misread,
    parse_columns,
    rename,
    unused,
    with_one_option,
)
from kd_convnext.data.manifest.formats import IMAGE_SUFFIXES, OTHER_SUFFIXES
from kd_convnext.errors import Finding, ManifestError, ManifestWarning

_NAMED = 3  # examples in a warning
_SAME = 2 - 1e-6  # pixels
_PART_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test"})


@dataclass(frozen=True)
class Source:
    """The manifest as written, before its content is checked.

    Attributes:
        path: CSV file or folder.
        root: Folder that the photographs' paths are relative to.
        table: One row per ROI: `row` (line number, header = 1; in a folder a running number), `where` (as
            printed in findings), and `TEXT_COLUMNS`, stripped text, "" where nothing was given.
        labelled: False when the whole label column is absent.
        findings: Problems of form.
    """

    path: Path
    root: Path
    table: pd.DataFrame
    labelled: bool = True
    findings: list[Finding] = field(default_factory=list)


def read_source(path: Path, *, require_labels: bool, columns: str | None = None) -> Source:
    """Reads a manifest's text.

    Args:
        path: CSV file (comma, semicolon or tab; UTF-8 or UTF-16; header), .xlsx file, or folder of class folders.
        require_labels: False allows a CSV without a label column and a folder without class folders.
        columns: Other names of columns (:func:`parse_columns`).

    Returns:
        The table and the problems of form found on the way.

    Raises:
        ManifestError: There is nothing to check: no such file, not a table, no `image` column, no rows.
    """
    chosen = parse_columns(columns)
    if path.is_dir():
        return _read_folder(path, require_labels)
    if not path.is_file():
        remedy = "Give a CSV file with the columns image,label or a folder of class folders."
        if path.exists():
            raise ManifestError(Finding(str(path), "the manifest is neither a file nor a folder", remedy))
        if not path.is_absolute():
            remedy = f"A path without a leading / counts from the folder you are in, {Path.cwd()}. {remedy}"
        raise ManifestError(Finding(str(path), "the manifest does not exist", remedy))
    return _read_csv(path, require_labels, chosen)


def _read_csv(path: Path, require_labels: bool, chosen: Mapping[str, str]) -> Source:
    records = read_records(path)
    where = f"{path.name}, row 1"
    if not records.lines:
        remedy = "It needs a header with the columns image,label and one row per photograph or box."
        raise ManifestError(Finding(path.name, "the manifest is empty", remedy))
    written = [name.strip().lower() for name in records.fields[0]]
    header, findings = rename(written, chosen, where)
    if "image" not in header:
        needed = ["image", "label"] if require_labels and "label" not in header else ["image"]
        findings += [*lacking(written, needed, where), *misread(header, where, strict=require_labels)]
        raise ManifestError(with_one_option(findings, chosen))
    findings = with_one_option([*findings, *_header_findings(header, where, require_labels)], chosen)
    kept: list[tuple[int, list[str]]] = []
    for line, fields in zip(records.lines[1:], records.fields[1:], strict=True):
        if len(fields) == len(header):
            kept.append((line, fields))
            continue
        what = f"{len(fields)} fields where the header has {len(header)}"
        remedy = "Put text that holds commas in double quotes."
        findings.append(Finding(f"{path.name}, row {line}", what, remedy))
    if len(records.lines) == 1:
        raise ManifestError([*findings, Finding(path.name, "the manifest has no rows", "List the photographs.")])
    if not kept:
        raise ManifestError(findings)
    used = [name for name, ours in zip(records.fields[0], header, strict=True) if ours in (*TEXT_COLUMNS, *CORNERS)]
    merged = sorted({line for name in used for line in records.merged.get(name, ())})
    if merged:
        rows = f"{counted(len(merged), 'row')}, the first is row {merged[0]}"
        message = f"{path.name}: the value of merged cells is taken for every row that they cover ({rows})"
        warnings.warn(message, ManifestWarning, stacklevel=4)
    table, unlike = text_table(path, header, kept, decimal_comma=records.decimal_comma)
    return Source(path, path.parent, table, "label" in header, findings + unlike)


def text_table(
    path: Path, header: list[str], rows: list[tuple[int, list[str]]], *, decimal_comma: bool
) -> tuple[pd.DataFrame, list[Finding]]:
    """Puts the columns that are ours into a table of stripped text.

    Args:
        path: The manifest.
        header: Its columns by our names, where they are ours.
        rows: Line number and fields of each row.
        decimal_comma: Whether its numbers have commas.

    Returns:
        The table, and findings of boxes whose size and far edges say different things.
    """
    place = {name: position for position, name in reversed(list(enumerate(header)))}
    text = {
        name: [fields[place[name]].strip() for _, fields in rows] for name in (*TEXT_COLUMNS, *CORNERS) if name in place
    }
    numbers = [line for line, _ in rows]
    table = pd.DataFrame({"row": numbers, "where": [f"{path.name}, row {line}" for line in numbers], **text})
    if decimal_comma:
        for name in (*BOX_COLUMNS, *CORNERS):
            if name in table:
                table[name] = table[name].str.replace(r"^(-?[0-9]+),([0-9]+)$", r"\1.\2", regex=True)
    findings = _with_sizes(table, path)
    if not all(name in table for name in BOX_COLUMNS):
        table = table.drop(columns=[name for name in BOX_COLUMNS if name in table])
    table = table.reindex(columns=["row", "where", *TEXT_COLUMNS], fill_value="")
    table["label"] = [unicodedata.normalize("NFC", label) for label in table["label"]]
    table["image"] = [image_name(image, path.parent) for image in table["image"]]
    return table, findings


def _with_sizes(table: pd.DataFrame, path: Path) -> list[Finding]:
    """Works out the sizes of boxes from their far edges, where they are not given, in place.

    Sizes and far edges that differ by less than two pixels say the same: one of them is rounded, or the last pixel is
    named in place of the one after it. Sizes that hold every far edge are those of the photographs, as in tables for
    the detection of objects.

    Args:
        table: Text columns.
        path: The manifest, for messages.

    Returns:
        The findings: far edges that are no numbers, and one of rows in which sizes and edges differ.
    """
    findings: list[Finding] = []
    unlike: list[pd.Series] = []
    inside: list[bool] = []
    worked_out: dict[str, pd.Series] = {}
    for near, far, size in (("x", "right", "width"), ("y", "bottom", "height")):
        if near not in table or far not in table:
            continue
        last = pd.to_numeric(table[far], errors="coerce")
        edges = last - pd.to_numeric(table[near], errors="coerce")
        text = edges.map("{:.12g}".format).where(edges.notna(), table[far].where(table[far] == "", "?"))
        given = table.get(size, pd.Series("", table.index))
        number = pd.to_numeric(given, errors="coerce")
        wrong = (given != "") & (table[far] != "") & last.isna()
        findings += [
            Finding(row["where"], f"{far} is {row[far]!r}, no number", "Correct it.")
            for _, row in table[wrong].iterrows()
        ]
        differ = (given != "") & ((number - edges).abs() >= _SAME)
        unlike.append(table["where"][differ] + f": {size} is " + given[differ] + f", {far} - {near} " + text[differ])
        inside.append(bool((number >= last)[number.notna() & last.notna()].all()))
        worked_out[size] = text
        table[size] = given.where(given != "", text)
    rows = pd.concat(unlike).sort_index(kind="stable") if unlike else pd.Series(dtype=str)
    if len(rows) and all(inside):
        for size, text in worked_out.items():
            table[size] = text
        message = f"{path.name}: width and height are taken for sizes of the photographs, as they hold every far edge"
        warnings.warn(message, ManifestWarning, stacklevel=5)
    elif len(rows):
        what = f"{counted(len(rows), 'size')} and far edges of boxes differ, the first in {rows.iloc[0]}"
        remedy = "Correct them, or leave out what does not hold, as with --columns ignore=width,ignore=height"
        findings.append(Finding(path.name, what, f"{remedy}{IN_A_FIT}."))
    return findings


def image_name(image: str, root: Path) -> str:
    """Writes a photograph's path as the package names it: relative to the manifest's folder, in the form on the disk.

    Args:
        image: As the manifest says.
        root: Folder of the manifest.
    """
    return _there(_relative(image, root), root)


def _there(image: str, root: Path) -> str:
    """Finds the Unicode form under which a file exists: macOS writes accents as separate characters."""
    if image.isascii() or os.path.lexists(root / image):
        return image
    forms = (unicodedata.normalize(form, image) for form in ("NFC", "NFD"))
    return next((form for form in forms if os.path.lexists(root / form)), image)


def _header_findings(header: list[str], where: str, require_labels: bool) -> list[Finding]:
    findings = []
    if require_labels and "label" not in header:
        findings += lacking(header, ["label"], where)
    findings += [
        Finding(where, f"the column '{name}' stands twice", "Keep one of them.")
        for name in TEXT_COLUMNS
        if header.count(name) > 1
    ]
    sizes = {"width": "right", "height": "bottom"}
    missing = [name for name in BOX_COLUMNS if name not in header and sizes.get(name) not in header]
    foreign = unused(header, where, strict=require_labels)
    if 0 < len(missing) < len(BOX_COLUMNS) and not any("boxes seem" in finding.what for finding in foreign):
        what = f"boxes need four columns, {', '.join(missing)} not there"
        findings.append(Finding(where, what, "Give x, y, width and height, or none of them."))
    return findings + foreign


def _relative(image: str, root: Path) -> str:
    """Normalises a path; relative to the manifest's folder where it is below it."""
    if not image:
        return image
    image = posixpath.normpath(image.replace("\\", "/"))
    if not posixpath.isabs(image):
        return image
    absolute_root = root.resolve().as_posix().rstrip("/") + "/"
    return image.removeprefix(absolute_root)


def _read_folder(folder: Path, require_labels: bool) -> Source:
    images: list[str] = []
    labels: list[str] = []
    empty: list[str] = []
    others: list[str] = []
    for child in sorted(folder.iterdir()):
        if child.name.startswith((".", "__")):
            continue
        if child.is_dir():
            found, strange = _images_below(child)
            others += [f"{child.name}/{name}" for name in strange]
            images += [(Path(child.name) / image).as_posix() for image in found]
            labels += [unicodedata.normalize("NFC", child.name)] * len(found)
            empty += [] if found else [child.name]
        elif child.suffix.lower() in IMAGE_SUFFIXES:
            images.append(child.name)
            labels.append("")
        elif child.suffix.lower() in OTHER_SUFFIXES:
            others.append(child.name)
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        remedy = f"Give a folder with one folder of photographs ({kinds}) per class, or a CSV file."
        raise ManifestError(Finding(str(folder), "there are no photographs in the class folders", remedy))
    if others:
        named = ", ".join(others[:_NAMED]) + (f" and {len(others) - _NAMED} more" if len(others) > _NAMED else "")
        message = f"{folder}: {named} left out, which are no photographs by their names"
        warnings.warn(f"{message}; a CSV file may name them", ManifestWarning, stacklevel=2)
    if empty:
        message = f"{folder}: folders without photographs, left out: {', '.join(empty)}"
        warnings.warn(message, ManifestWarning, stacklevel=2)
    findings = []
    if require_labels and {label.lower() for label in labels} - {""} <= _PART_FOLDERS and any(labels):
        what = f"the folders {', '.join(sorted(set(labels) - {''}))} are parts of a split, not classes"
        findings.append(Finding(str(folder), what, "Write a CSV file with the columns image,label,split."))
    table = pd.DataFrame({"row": range(1, len(images) + 1), "where": images, "image": images, "label": labels})
    return Source(folder, folder, table.reindex(columns=["row", "where", *TEXT_COLUMNS], fill_value=""), True, findings)


def _images_below(folder: Path) -> tuple[list[str], list[str]]:
    """Lists photographs in a folder and its folders, and other files, sorted; links are followed, never in a circle.

    Folders that may not be listed stand among the photographs: they become findings.
    """
    denied: list[OSError] = []
    found: list[str] = []
    others: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, onerror=denied.append, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [name for name in folders if not name.startswith(".")] if real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        below = Path(place).relative_to(folder)
        for name in (name for name in files if not name.startswith(".")):
            kind = found if Path(name).suffix.lower() in IMAGE_SUFFIXES else others
            kind.append((below / name).as_posix())
    found += [Path(error.filename).relative_to(folder).as_posix() for error in denied]
    return sorted(found), sorted(others)
