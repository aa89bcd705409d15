"""Changes to a manifest's rows, in the file itself: unknown columns and untouched rows keep every byte."""

import contextlib
import csv
import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from kd_convnext.common.files import atomic_write, read_bytes, write_finding
from kd_convnext.common.tables import as_written, find_separator, inert
from kd_convnext.data.manifest.boxes import Box, box_of
from kd_convnext.data.manifest.columns import lacking, parse_columns, refuse_edges, rename, with_one_option
from kd_convnext.data.manifest.source import image_name
from kd_convnext.errors import ConfigError, Finding, KDConvNeXtError, ManifestError

COLUMNS = ("image", "label", "lesion_id", "patient_id", "x", "y", "width", "height")
"""What a new manifest has; an older one gets those of them that a change needs."""

_BOX = COLUMNS[4:]


class ConflictError(KDConvNeXtError):
    """Reports that somebody else has changed the rows meanwhile."""


@dataclass(frozen=True)
class Region:
    """One row of a photograph.

    Attributes:
        label: Its class; empty where not said yet.
        lesion_id: The lesion; empty where unknown.
        patient_id: The patient; empty where unknown.
        box: Where; None for the whole photograph.
        place: Which of the photograph's rows it was (0 the first); None for a new one.
        more: Further columns to write, such as ``corrections``.
    """

    label: str = ""
    lesion_id: str = ""
    patient_id: str = ""
    box: Box | None = None
    place: int | None = None
    more: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Record:
    """One row as it stands in the file.

    Attributes:
        line: Its number in the file, the first line is 1.
        raw: Its text, with the line's end.
        fields: Its values.
    """

    line: int
    raw: str
    fields: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Content:
    """A manifest as it stands in the file.

    Attributes:
        digest: Hash of the bytes; empty where there is no file.
        header: Names of the columns, as written.
        names: The same as the package calls them, in lower case.
        head: The header's text.
        records: The rows.
        images: Photograph to the positions of its rows.
        dialect: Separator and end of a line.
        marked: Whether the file begins with a byte order mark.
        start: What stands before the header: a line that names the separator, blank lines.
    """

    digest: str
    header: tuple[str, ...]
    names: tuple[str, ...]
    head: str
    records: tuple[Record, ...]
    images: dict[str, list[int]] = field(repr=False)
    dialect: tuple[str, str] = (",", "\n")
    marked: bool = False
    start: str = ""

    def value(self, record: Record, name: str) -> str:
        """Returns a row's value in a column, stripped; empty where there is none."""
        for position, column in enumerate(self.names[: len(record.fields)]):
            if column == name:
                return as_written(record.fields[position].strip())
        return ""

    def box(self, record: Record) -> Box | None:
        """Returns a row's box as `prepare` reads it; None where there is none that it could."""
        return box_of([self.value(record, name) for name in _BOX], decimal_comma=self.dialect[0] != ",")

    def rows(self, image: str) -> list[Record]:
        """Returns the rows of a photograph."""
        return [self.records[place] for place in self.images.get(image, [])]

    def regions(self, image: str) -> list[Region]:
        """Returns what the rows of a photograph say; a box that is none counts as the whole photograph."""
        return [
            Region(
                label=self.value(record, "label"),
                lesion_id=self.value(record, "lesion_id"),
                patient_id=self.value(record, "patient_id"),
                box=self.box(record),
                place=place,
            )
            for place, record in enumerate(self.rows(image))
        ]

    def version(self, image: str) -> str:
        """Returns a hash of a photograph's rows: another one after any change of them."""
        return hashlib.sha256("\0".join(record.raw for record in self.rows(image)).encode()).hexdigest()[:16]


class ManifestFile:
    """A manifest that is changed row by row, by several people and programs.

    Attributes:
        path: The file; it need not exist yet.
    """

    def __init__(self, path: Path, columns: str | None = None) -> None:
        """Names the file.

        Args:
            path: It need not exist yet.
            columns: Other names of its columns; those it gets later have the package's names.

        Raises:
            ConfigError: The names cannot be read.
        """
        self.path, self.columns = path, parse_columns(columns)
        self._lock = threading.RLock()
        self._kept: tuple[tuple[int, ...], Content] | None = None

    def read(self) -> Content:
        """Reads the file, unless it is as it was.

        Raises:
            ManifestError: It is not a CSV with a column ``image``.
        """
        with self._lock:
            state = _state(self.path)
            if self._kept is None or self._kept[0] != state or not state:
                self._kept = (state, _parsed(self.path, self.columns))
            return self._kept[1]

    def replace(self, image: str, version: str, regions: Sequence[Region]) -> Content:
        """Writes a photograph's rows anew; all other rows keep every byte.

        Args:
            image: Path relative to the manifest.
            version: What `Content.version` said when the rows were read.
            regions: What is to stand there; rows that no region names are deleted.

        Returns:
            The new content.

        Raises:
            ConflictError: The rows, or the file while it was written, were changed by somebody else.
            ManifestError: The file is not a manifest.
            ConfigError: It cannot be written, or its boxes are named by their far edges.
        """
        return self._write(image, version, lambda content: _changed(content, image, regions))

    def restore(self, image: str, version: str, rows: Sequence[Record]) -> Content:
        """Restores a photograph's earlier rows, with all they held in unknown columns.

        Args:
            image: Path relative to the manifest.
            version: See `replace`.
            rows: As `Content.rows` gave them once; columns that came since are left empty.

        Returns:
            The new content.

        Raises:
            KDConvNeXtError: See `replace`.
        """
        return self._write(image, version, lambda content: _restored(content, image, rows))

    def _write(self, image: str, version: str, text: Callable[[Content], str]) -> Content:
        refuse_edges(self.columns)
        with self._lock, _folder_lock(self.path.parent):
            before = _state(self.path)
            content = _parsed(self.path, self.columns)
            if content.version(image) != version:
                what = "its regions were changed by somebody else meanwhile"
                raise ConflictError(Finding(image, what, "Look at them as they are now, then change them again."))
            data = text(content).encode("utf-8-sig" if content.marked else "utf-8")

            def write(file: BinaryIO) -> None:
                file.write(data)
                if before:
                    Path(file.name).chmod(stat.S_IMODE(self.path.stat().st_mode))
                if _state(self.path) != before:
                    what = "it was written by another program at the same moment"
                    raise ConflictError(Finding(self.path.name, what, "Look at it as it is now, then change it again."))

            try:
                atomic_write(self.path.resolve(), write)
            except OSError as error:
                raise ConfigError(write_finding(self.path, error)) from error
            self._kept = None
            return self.read()


def _state(path: Path) -> tuple[int, ...]:
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino)


@contextlib.contextmanager
def _folder_lock(folder: Path) -> Iterator[None]:
    """Lets one program of this kind at a time change the folder's manifest, where the system has such locks."""
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _parsed(path: Path, columns: Mapping[str, str]) -> Content:
    try:
        data = read_bytes(path)
    except FileNotFoundError:
        return Content("", COLUMNS, COLUMNS, ",".join(COLUMNS) + "\n", (), {})
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise ManifestError(Finding(str(path), what, "Check the file's permissions.")) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        remedy = 'Save it from the spreadsheet as "CSV UTF-8".'
        raise ManifestError(Finding(path.name, "the manifest is not UTF-8 text", remedy)) from error
    start, separator = find_separator(text)
    lines = io.StringIO(text, newline="").readlines()
    start, records = _records(path, lines, start, separator)
    end = "\r\n" if (records[0].raw if records else start).endswith("\r\n") else "\n"
    head, *rows = records or [Record(1, separator.join(COLUMNS) + end, COLUMNS)]
    names, where = [name.strip().lower() for name in head.fields], f"{path.name}, row {head.line}"
    names, findings = rename(names, columns if records else {}, where)  # a header of ours has our names
    findings += [] if "image" in names else lacking(names, ["image"], where)
    if findings:
        raise ManifestError(with_one_option(findings, columns))
    content = Content(
        digest=hashlib.sha256(data).hexdigest(),
        header=head.fields,
        names=tuple(names),
        head=head.raw,
        records=tuple(rows),
        images={},
        dialect=(separator, end),
        marked=data.startswith(b"\xef\xbb\xbf"),
        start=start,
    )
    for place, record in enumerate(rows):
        name = image_name(content.value(record, "image").strip(), path.parent)
        content.images.setdefault(name, []).append(place)
    return content


def _records(path: Path, lines: list[str], start: str, separator: str) -> tuple[str, list[Record]]:
    """Parses what follows a file's start; blank lines stay where they are, behind the row above or the start."""
    first = done = 1 if start else 0
    reader = csv.reader(lines[first:], delimiter=separator, strict=True)
    records: list[Record] = []
    try:
        for fields in reader:
            raw = "".join(lines[done : first + reader.line_num])
            if any(text.strip() for text in fields):
                records.append(Record(done + 1, raw, tuple(fields)))
            elif records:
                last = records[-1]
                records[-1] = Record(last.line, last.raw + raw, last.fields)
            else:
                start += raw
            done = first + reader.line_num
    except csv.Error as error:
        remedy = "Check the double quotes from that row on."
        raise ManifestError(Finding(f"{path.name}, row {done + 1}", f"not CSV ({error})", remedy)) from error
    return start, records


def _changed(content: Content, image: str, regions: Sequence[Region]) -> str:
    """Returns the whole file's text with other rows for one photograph."""
    needed = [name for name in COLUMNS if name != "image" and any(_values(region).get(name) for region in regions)]
    needed += [name for region in regions for name, _ in region.more]
    if any(name in _BOX for name in needed):
        needed += _BOX  # half a box is none
    known = content.names
    added = [name for name in dict.fromkeys(needed) if name not in known]
    columns = [*known, *added]
    end = content.dialect[1]
    old = content.images.get(image, [])

    def line(fields: Sequence[str]) -> str:
        return _line(fields, content.dialect)

    def written(region: Region) -> str:
        record = content.records[old[region.place]] if region.place is not None else None
        fields = [*record.fields] if record else [""] * len(known)
        fields += [""] * (len(columns) - len(fields))
        values = {**_values(region), **dict(region.more)}
        if record is None:
            values["image"] = image
        elif region.box == content.box(record):  # whose text may be another: 10,5 or 10.0
            values = {name: value for name, value in values.items() if name not in _BOX}
        for name, value in values.items():
            if name in columns and as_written(fields[columns.index(name)].strip()) != value:
                fields[columns.index(name)] = inert(value)
        return record.raw if record and not added and tuple(fields) == record.fields else line(fields)

    kept = {old[region.place]: region for region in regions if region.place is not None and region.place < len(old)}
    new = [written(region) for region in regions if region.place is None]
    rows = [line([*content.header, *added]) if added else _ended(content.head, end)]
    for place, record in enumerate(content.records):
        if place in kept:
            rows.append(written(kept[place]))
        elif place not in old:
            short = added and len(record.fields) == len(known)
            rows.append(line([*record.fields, *[""] * len(added)]) if short else record.raw)
        if old and place == old[-1]:
            rows += new
    return content.start + "".join(_ended(row, end) for row in [*rows, *([] if old else new)])


def _restored(content: Content, image: str, rows: Sequence[Record]) -> str:
    """Returns the whole file's text with earlier rows of one photograph, each where a row of it stands now."""
    end, count = content.dialect[1], len(content.header)

    def written(row: Record) -> str:
        short = len(row.fields) < count
        return _line([*row.fields, *[""] * (count - len(row.fields))], content.dialect) if short else row.raw

    old, waiting = content.images.get(image, []), [written(row) for row in rows]
    lines = [content.head]
    for place, record in enumerate(content.records):
        if place not in old:
            lines.append(record.raw)
        elif place == old[-1]:
            lines += waiting
        elif waiting:
            lines.append(waiting.pop(0))
    return content.start + "".join(_ended(line, end) for line in [*lines, *([] if old else waiting)])


def _line(fields: Sequence[str], dialect: tuple[str, str]) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=dialect[0], lineterminator=dialect[1]).writerow(fields)
    return text.getvalue()


def _values(region: Region) -> dict[str, str]:
    box = region.box
    numbers = ["", "", "", ""] if box is None else [str(n) for n in (box.x, box.y, box.width, box.height)]
    return {
        "label": region.label,
        "lesion_id": region.lesion_id,
        "patient_id": region.patient_id,
        **dict(zip(_BOX, numbers, strict=True)),
    }


def _ended(row: str, end: str) -> str:
    return row if row.endswith(("\n", "\r")) else row + end
