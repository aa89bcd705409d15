"""Reads and writes CSV files in which everything is text: NA is a name, 007 keeps its zeros, no spreadsheet runs it."""

import csv
import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.parsers import expat

import pandas as pd

from kd_convnext.common.files import read_bytes
from kd_convnext.errors import ConfigError, Finding, ManifestError

_ACTIVE = r"'*[=+\-@\t\r]"
_GUARDED = re.compile(r"'+[=+\-@\t\r]")
_MARKUP = re.compile(r"[\\`*~|]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|<(?=[A-Za-z/!?])|&(?=#?\w+;)")
"""What Markdown would read as more than text: links, images, emphasis, code, tags, entities, columns."""
_SEPARATORS = (",", ";", "\t")
_NAMED_SEPARATOR = re.compile(r""""?sep=(?P<mark>[,;|:\t])"?[,;|:\t ]*(\r\n|\r|\n)""", re.IGNORECASE)
"""A first line by which a spreadsheet says what separates columns."""
_FIRST_LINE = re.compile(r"[\r\n ]*([^\r\n]*)")
_LONGEST_FIELD = 1 << 20  # characters
_LARGEST = 1 << 31  # bytes: millions of rows
_UNPACKED = 1 << 29  # bytes of a workbook, of which openpyxl holds several times as many
_WIDEST = 1000  # columns of a workbook
_MARKS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))

TABLE_SUFFIXES = (".csv", ".tsv", ".xlsx", ".xlsm")
"""How names of tables end, in lower case, where a photograph may be named as well."""


@dataclass(frozen=True)
class Records:
    """The fields of a table as written.

    Attributes:
        lines: Line of each record, the first line is 1.
        fields: Of each record that is not blank, the header among them.
        decimal_comma: Whether numbers may be written with a comma: the columns are not separated by one.
        merged: Name of a column, as written, to the lines in which its cell took the value of the merged one above.
    """

    lines: list[int]
    fields: list[list[str]]
    decimal_comma: bool = False
    merged: Mapping[str, Sequence[int]] = field(default_factory=dict)


def read_table(path: Path, needed: Sequence[str] = ()) -> pd.DataFrame:
    """Reads a CSV file that this package wrote: all columns text, "" where nothing stands, formulas as they were.

    Args:
        path: The file (UTF-8, comma).
        needed: Columns that it must have.

    Raises:
        ConfigError: It cannot be read, is not CSV, or lacks a column.
    """
    remedy = "It was changed or cut since it was written: write it again, or move it away."
    try:
        content = io.BytesIO(read_bytes(path, _LARGEST))
        frame = pd.read_csv(content, dtype=str, keep_default_na=False, na_filter=False, encoding="utf-8-sig")
    except OSError as error:
        raise ConfigError(Finding(str(path), f"cannot be read ({error.strerror or error})", remedy)) from error
    except ValueError as error:
        what = f"is not a table ({' '.join(str(error).split())[:160]})"
        raise ConfigError(Finding(str(path), what, remedy)) from error
    lacking = [name for name in needed if name not in frame]
    if lacking:
        raise ConfigError(Finding(str(path), f"lacks the columns {', '.join(lacking)}", remedy))
    for name in frame:
        column = frame[name]
        frame[name] = column.where(~column.str.match(r"'+[=+\-@\t\r]"), column.str.slice(1))
    return frame


def read_numbers(path: Path) -> pd.DataFrame:
    """Reads a CSV file of numbers, such as a fit's ``metrics.csv``.

    Args:
        path: The file.

    Returns:
        float64 columns, NaN where no number stands.

    Raises:
        ConfigError: It cannot be read, or is not CSV.
    """
    return pd.DataFrame(read_table(path).apply(pd.to_numeric, errors="coerce"))


def guarded(frame: pd.DataFrame) -> pd.DataFrame:
    """Puts an apostrophe before text that a spreadsheet would run as a formula; `read_table` takes it off again.

    Args:
        frame: Any table; text that begins with =, +, -, @, a tab or a carriage return is changed, numbers are not.

    Returns:
        A copy.
    """
    found = frame.copy()
    for position in range(found.shape[1]):
        column = found.iloc[:, position]
        if not (pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column)):
            continue
        active = column.map(lambda value: isinstance(value, str) and re.match(_ACTIVE, value) is not None).astype(bool)
        if active.any():
            found.isetitem(position, column.where(~active, "'" + column.astype(str)).array)
    return found


def inert(text: str) -> str:
    """Puts an apostrophe before a text that a spreadsheet would run, as `guarded` does; `as_written` takes it off."""
    return f"'{text}" if re.match(_ACTIVE, text) else text


def as_written(text: str) -> str:
    """Takes off the apostrophe of `guarded`."""
    return text[1:] if _GUARDED.match(text) else text


def markdown_text(text: str) -> str:
    """Returns a text that Markdown shows as it is, in a table too; intervals and plain words are left readable."""
    # Not every reader of Markdown knows a backslash before these two.
    entities = {"<": "&lt;", "&": "&amp;"}
    return _MARKUP.sub(lambda found: entities.get(found[0], f"\\{found[0]}"), text).replace("\n", " ")


def read_records(path: Path) -> Records:
    """Reads a table as people have them: CSV with comma, semicolon or tab, in UTF-8 or UTF-16, or .xlsx.

    Args:
        path: The file.

    Returns:
        Its records as text.

    Raises:
        ManifestError: It cannot be read as a table; what it is instead, where that can be told.
    """
    if path.suffix.lower() in (".xlsx", ".xlsm"):
        return _read_workbook(path)
    text = _text(path)
    start, separator = find_separator(text)
    first = line = 2 if start else 1
    lines: list[int] = []
    records: list[list[str]] = []
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        reader = csv.reader(io.StringIO(text[len(start) :], newline=""), delimiter=separator, strict=True)
        for fields in reader:
            if any(field.strip() for field in fields):
                lines.append(line)
                records.append([as_written(field) for field in fields])
            line = reader.line_num + first
    except csv.Error as error:
        remedy = "Check the double quotes from that row on."
        raise ManifestError(Finding(f"{path.name}, row {line}", f"not CSV ({error})", remedy)) from error
    finally:
        csv.field_size_limit(before)
    return Records(lines, records, decimal_comma=separator != ",")


def find_separator(text: str) -> tuple[str, str]:
    """Finds what separates the columns of a CSV file.

    Args:
        text: The whole file's, without a byte order mark.

    Returns:
        The first line if it only names the separator, with its end, else "" (blank lines may follow before the
        header); and the separator.
    """
    named = _NAMED_SEPARATOR.match(text)
    if named:
        return named[0], named["mark"]
    return "", _separator(_FIRST_LINE.match(text)[1])  # type: ignore[index]  # it matches any text


def _text(path: Path) -> str:
    try:
        content = read_bytes(path, _LARGEST)
    except OSError as error:
        remedy = "Check the file's permissions."
        raise ManifestError(Finding(str(path), f"cannot be read ({error.strerror})", remedy)) from error
    if content.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0")):
        what, remedy = "a spreadsheet of another name, not CSV", 'Name it .xlsx, or save it as "CSV UTF-8".'
        raise ManifestError(Finding(path.name, what, remedy))
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        remedy = 'Save it from the spreadsheet as "CSV UTF-8".'
        raise ManifestError(Finding(path.name, "the manifest is not UTF-8 text", remedy)) from error
    if "\0" in text:
        remedy = 'Save it from the spreadsheet as "CSV UTF-8".'
        raise ManifestError(Finding(path.name, "the manifest holds NUL characters: it is no text", remedy))
    return text


def _separator(header: str) -> str:
    """Chooses what separates columns: what stands most often in the header, outside quotes; the comma on a tie."""
    outside = re.sub(r'"[^"]*"', "", header)
    return max(_SEPARATORS, key=lambda mark: (outside.count(mark), mark == ","))


def _read_workbook(path: Path) -> Records:
    """Reads the first sheet of an Excel workbook, cells as text."""
    try:
        import openpyxl
    except ImportError as error:
        remedy = 'pip install "kd-convnext[xlsx]", or save the sheet as "CSV UTF-8".'
        raise ManifestError(Finding(path.name, "reading .xlsx needs openpyxl", remedy)) from error
    try:
        _require_modest(path)
        with path.open("rb") as file:  # openpyxl leaves open what it refuses
            sheet = openpyxl.load_workbook(file, read_only=True, data_only=True).worksheets[0]
            sheet.reset_dimensions()  # a file may state any, to which every row would be filled up
            rows = [_fields(row) for row in sheet.iter_rows(values_only=True)]
            merged = _fill_merged(rows, _merged(sheet))
    except ManifestError:
        raise
    except Exception as error:  # zipfile, XML and openpyxl's own
        remedy = 'Save the sheet as "CSV UTF-8".'
        raise ManifestError(Finding(path.name, f"is not a workbook that can be read ({error})", remedy)) from error
    kept = [(line, row) for line, row in enumerate(rows, start=1) if row]
    width = max((len(row) for _, row in kept), default=0)
    if width > _WIDEST:
        remedy = "Delete what stands far to the right, or save the table as a sheet of its own."
        raise ManifestError(Finding(path.name, f"its first sheet has {width} columns", remedy))
    fields = [row + [""] * (width - len(row)) for _, row in kept]
    return Records([line for line, _ in kept], fields, merged=merged)


def _merged(sheet: Any) -> list[str]:
    """Lists the ranges of merged cells, such as A2:A4: what openpyxl leaves out of sheets that it reads row by row."""
    found: list[str] = []

    def begin(tag: str, attributes: dict[str, str]) -> None:
        if tag.rpartition(":")[2] == "mergeCell":
            found.append(attributes["ref"])

    parser = expat.ParserCreate()
    parser.StartElementHandler = begin
    with sheet._get_source() as part:
        parser.ParseFile(part)
    return found


def _fill_merged(rows: list[list[str]], ranges: Sequence[str]) -> dict[str, list[int]]:
    """Writes the value of merged cells, which stands in the first one alone, into all rows that they cover.

    Across columns it means nothing: a lesion's id is not the patient's.

    Args:
        rows: Changed in place; rows without anything of their own stay so, and the header as it is.
        ranges: See `_merged`.

    Returns:
        Names of columns to the lines that were changed.
    """
    from openpyxl.utils import range_boundaries

    changed: dict[str, list[int]] = {}
    header, names = next(((line, row) for line, row in enumerate(rows, start=1) if row), (0, []))
    for left, top, _, bottom in map(range_boundaries, ranges):
        first = rows[top - 1] if header < top <= len(rows) else []
        value = first[left - 1] if left <= min(len(first), len(names)) else ""
        for line in range(top, min(bottom, len(rows)) + 1 if value else top):
            row = rows[line - 1]
            row += [""] * (left - len(row) if row else 0)
            if row and row[left - 1] != value:
                row[left - 1] = value
                changed.setdefault(names[left - 1], []).append(line)
    return changed


def _require_modest(path: Path) -> None:
    """Refuses a workbook that would fill the memory when it is unpacked, whatever its size on the disk."""
    with zipfile.ZipFile(path) as parts:
        size = sum(part.file_size for part in parts.infolist())
    if size > _UNPACKED:
        what = f"has {size / 1e6:.0f} MB when it is unpacked, at most {_UNPACKED / 1e6:.0f} MB are read"
        raise ManifestError(Finding(path.name, what, 'Save the sheet as "CSV UTF-8".'))


def _fields(row: Sequence[object]) -> list[str]:
    """Writes the cells of a row as text, without empty ones at its end; of a row without any, nothing."""
    fields = ["" if value is None else as_written(_cell(value)) for value in row]
    count = max((place for place, text in enumerate(fields, start=1) if text.strip()), default=0)
    return fields[:count]


def _cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
