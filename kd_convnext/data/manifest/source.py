"""A CSV file or a folder of class folders becomes one table of text, with what is wrong in its form."""

import csv
import difflib
import os
import posixpath
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from kd_convnext.data.manifest.inspection import IMAGE_SUFFIXES
from kd_convnext.errors import Finding, ManifestError

BOX_COLUMNS = ("x", "y", "width", "height")
TEXT_COLUMNS = ("image", "label", "lesion_id", "patient_id", *BOX_COLUMNS, "split")
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


def read_source(path: Path, *, require_labels: bool) -> Source:
    """Reads a manifest's text.

    Args:
        path: CSV file (UTF-8, comma, header) or folder of class folders.
        require_labels: False allows a CSV without a label column and a folder without class folders.

    Returns:
        The table and the problems of form found on the way.

    Raises:
        ManifestError: There is nothing to check: no such file, not a UTF-8 CSV, no `image` column, no rows.
    """
    if path.is_dir():
        return _read_folder(path, require_labels)
    if not path.is_file():
        remedy = "Give a CSV file with the columns image,label or a folder of class folders."
        raise ManifestError(Finding(str(path), "the manifest does not exist", remedy))
    return _read_csv(path, require_labels)


def _read_csv(path: Path, require_labels: bool) -> Source:
    lines, header, rows = _records(path)
    findings = _header_findings(path, header, require_labels)
    ragged = [len(fields) != len(header) for fields in rows]
    for line, fields, bad in zip(lines, rows, ragged, strict=True):
        if bad:
            what = f"{len(fields)} fields where the header has {len(header)}"
            remedy = "Put text that holds commas in double quotes."
            findings.append(Finding(f"{path.name}, row {line}", what, remedy))
    columns = {name: position for position, name in enumerate(header) if name in TEXT_COLUMNS}
    kept = [(line, fields) for line, fields, bad in zip(lines, rows, ragged, strict=True) if not bad]
    if not rows:
        raise ManifestError([*findings, Finding(path.name, "the manifest has no rows", "List the photographs.")])
    if not kept:
        raise ManifestError(findings)
    data: dict[str, list[str]] = {}
    half_columns = any(name in columns for name in BOX_COLUMNS) and any(name not in columns for name in BOX_COLUMNS)
    for name in TEXT_COLUMNS:
        if name not in columns or (half_columns and name in BOX_COLUMNS):
            data[name] = [""] * len(kept)
        else:
            position = columns[name]
            data[name] = [fields[position].strip() for _, fields in kept]
    data["image"] = [_relative(image, path.parent) for image in data["image"]]
    numbers = [line for line, _ in kept]
    places = [f"{path.name}, row {line}" for line in numbers]
    table = pd.DataFrame({"row": numbers, "where": places, **data})
    return Source(path, path.parent, table, "label" in columns, findings)


def _records(path: Path) -> tuple[list[int], list[str], list[list[str]]]:
    """Returns line numbers, the header in lower case, and the fields of every row that is not blank."""
    # The csv module rather than pandas: it knows each record's line, and pandas cuts overlong rows silently.
    records: list[tuple[int, list[str]]] = []
    line = 1
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            for fields in reader:
                if any(text.strip() for text in fields):
                    records.append((line, fields))
                line = reader.line_num + 1
    except UnicodeDecodeError as error:
        remedy = 'Save it from the spreadsheet as "CSV UTF-8".'
        raise ManifestError(Finding(path.name, "the manifest is not UTF-8 text", remedy)) from error
    except csv.Error as error:
        remedy = "Check the double quotes from that row on."
        raise ManifestError(Finding(f"{path.name}, row {line}", f"not CSV ({error})", remedy)) from error
    except OSError as error:
        remedy = "Check the file's permissions."
        raise ManifestError(Finding(str(path), f"cannot be read ({error.strerror})", remedy)) from error
    if not records:
        remedy = "It needs a header with the columns image,label and one row per photograph or box."
        raise ManifestError(Finding(path.name, "the manifest is empty", remedy))
    header = [name.strip().lower() for name in records[0][1]]
    if "image" not in header:
        raise ManifestError(_no_image_column(path, header))
    return [line for line, _ in records[1:]], header, [fields for _, fields in records[1:]]


def _no_image_column(path: Path, header: list[str]) -> Finding:
    if len(header) == 1 and any(mark in header[0] for mark in ";\t"):
        return Finding(f"{path.name}, row 1", "the columns are not separated by commas", "Save it with commas.")
    what = f"there is no column 'image' (columns: {', '.join(header)})"
    return Finding(f"{path.name}, row 1", what, "Name the column that holds the photographs' paths 'image'.")


def _header_findings(path: Path, header: list[str], require_labels: bool) -> list[Finding]:
    where = f"{path.name}, row 1"
    findings = []
    if require_labels and "label" not in header:
        what = f"there is no column 'label' (columns: {', '.join(header)})"
        findings.append(Finding(where, what, "Name the column that holds the classes 'label'."))
    findings += [
        Finding(where, f"the column '{name}' stands twice", "Keep one of them.")
        for name in TEXT_COLUMNS
        if header.count(name) > 1
    ]
    missing = [name for name in BOX_COLUMNS if name not in header]
    if 0 < len(missing) < len(BOX_COLUMNS):
        what = f"boxes need four columns, {', '.join(missing)} not there"
        findings.append(Finding(where, what, "Give x, y, width and height, or none of them."))
    absent = [name for name in TEXT_COLUMNS if name not in header]
    for name in header:
        close = difflib.get_close_matches(name, absent, n=1, cutoff=0.75)
        if name not in TEXT_COLUMNS and close:
            message = f"{where}: the column '{name}' is not used; did you mean '{close[0]}'?"
            warnings.warn(message, stacklevel=2)
    return findings


def _relative(image: str, root: Path) -> str:
    """Spells a path one way, relative to the manifest's folder where it lies below it."""
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
    for child in sorted(folder.iterdir()):
        if child.name.startswith((".", "__")):
            continue
        if child.is_dir():
            found = _images_below(child)
            images += [f"{child.name}/{image}" for image in found]
            labels += [child.name] * len(found)
            empty += [] if found else [child.name]
        elif child.suffix.lower() in IMAGE_SUFFIXES:
            images.append(child.name)
            labels.append("")
    if not images:
        kinds = ", ".join(sorted(IMAGE_SUFFIXES))
        remedy = f"Give a folder with one folder of photographs ({kinds}) per class, or a CSV file."
        raise ManifestError(Finding(str(folder), "there are no photographs in the class folders", remedy))
    if empty:
        warnings.warn(f"{folder}: folders without photographs, left out: {', '.join(empty)}", stacklevel=2)
    findings = []
    if require_labels and {label.lower() for label in labels} - {""} <= _PART_FOLDERS and any(labels):
        what = f"the folders {', '.join(sorted(set(labels) - {''}))} are parts of a split, not classes"
        findings.append(Finding(str(folder), what, "Write a CSV file with the columns image,label,split."))
    table = pd.DataFrame({"row": range(1, len(images) + 1), "where": images, "image": images, "label": labels})
    return Source(folder, folder, table.reindex(columns=["row", "where", *TEXT_COLUMNS], fill_value=""), True, findings)


def _images_below(folder: Path) -> list[str]:
    """Lists photographs in a folder and its folders, sorted, links followed but never in a circle."""
    found: list[str] = []
    seen: set[str] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        folders[:] = [name for name in folders if not name.startswith(".")] if real not in seen else []
        if real in seen:
            continue
        seen.add(real)
        below = Path(place).relative_to(folder)
        found += [
            (below / name).as_posix()
            for name in files
            if not name.startswith(".") and Path(name).suffix.lower() in IMAGE_SUFFIXES
        ]
    return sorted(found)
