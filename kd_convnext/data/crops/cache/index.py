"""Remembers which photograph gave which stored crop, so that photographs are not decoded again."""

import json
import os
import platform
import secrets
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from kd_convnext.common.files import atomic_write, read_bytes, write_finding
from kd_convnext.common.reading import json_of
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.errors import CacheError

_READERS = dict.fromkeys((".dcm", ".dicom", ".tif", ".tiff"), 1)
"""How often the reading of a format has changed: what an earlier version read of such a file is read again."""


class Stamp(NamedTuple):
    """What tells a photograph from another without reading it.

    Size and modification time alone do not: tools that keep the time (``rsync -t``, ``touch -r``, ``exiftool -P``) put
    another photograph of the same size there. The time of the last change of the inode cannot be set.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int = 0
    inode: int = 0
    reader: int = 0

    @classmethod
    def of(cls, path: Path) -> "Stamp":
        """Reads the stamp of a file.

        Args:
            path: The photograph.

        Raises:
            OSError: There is no such file, or it cannot be looked at.
        """
        status = path.stat()
        facts = (status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino)
        return cls(str(path.absolute()), *facts, _READERS.get(path.suffix.lower(), 0))


_LARGEST = 2**31
"""Bytes of an index file: ten million crops."""

COMPACTED_AFTER = 24 * 3600
"""Seconds without a change after which no process writes a file of the index any more."""


def compact(folder: Path, now: float | None = None) -> int:
    """Joins old files of an index into one, without the lines that later ones replace.

    Args:
        folder: Where the index files are.
        now: Seconds since 1970; by default the clock's.

    Returns:
        How many files are gone.

    Raises:
        CacheError: No space or no permission.
    """
    limit = (time.time() if now is None else now) - COMPACTED_AFTER
    old = [path for path in sorted(folder.glob("*.jsonl")) if path.stat().st_mtime < limit]
    if len(old) < 2:
        return 0
    lines: dict[str, str] = {}
    for path in old:
        for line in _lines(path):
            place = _place_of(line)
            if place is not None:
                lines.pop(place, None)  # in the order of the last mention
                lines[place] = line
    try:
        # Under the last one's name: files that are younger go on holding over it.
        atomic_write(old[-1], lambda file: file.write("".join(f"{line}\n" for line in lines.values()).encode()))
        for path in old[:-1]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise CacheError(write_finding(folder, error)) from error
    return len(old) - 1


def _lines(path: Path) -> list[str]:
    """Reads the lines of an index file; of what is none, such as a pipe, there are none."""
    try:
        return read_bytes(path, _LARGEST).decode("utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _place_of(line: str) -> str | None:
    """Names what a line is about: a photograph's path and box, or the run itself; None for a line that was cut."""
    try:
        content = json_of(line)
        return json.dumps([content["crop"][0], content["crop"][-2]]) if "crop" in content else line
    except (ValueError, TypeError, KeyError, IndexError):
        return None


class Index:
    """Maps photograph and box to the key of the stored crop, as last seen.

    Each process appends whole lines to a file of its own and reads everybody's: no locks, which network file systems
    do not keep (a reason against SQLite), and nothing to repair. A line that a crash cut is skipped, a lost one costs
    decoding a photograph again. The first line of a file records who wrote it, with which versions. `compact` joins
    old files.
    """

    def __init__(self, folder: Path, record: dict[str, Any]) -> None:
        """Reads all index files of the folder.

        Args:
            folder: Where the index files are; made on the first `add`.
            record: JSON types; written as the first line of this process's file.
        """
        self._record = record
        self._known: dict[tuple[Stamp, Box | None], str] = {}
        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{platform.node()}-{os.getpid()}-{secrets.token_hex(4)}.jsonl"
        self._path = folder / name
        self._file: int | None = None
        self._lock = threading.Lock()
        for path in sorted(folder.glob("*.jsonl")):
            for line in _lines(path):
                self._learn(line)

    def _learn(self, line: str) -> None:
        try:
            *stamp, box, key = json_of(line)["crop"]  # of earlier versions shorter stamps, which are never met
            self._known[Stamp(*stamp), Box(*box) if box else None] = str(key)
        except (ValueError, TypeError, KeyError):
            return  # the record of a run, or a line cut by a crash

    def find(self, stamp: Stamp, box: Box | None) -> str | None:
        """Returns the key of a crop seen before, or None.

        Args:
            stamp: The photograph as it is now.
            box: The region of interest.
        """
        return self._known.get((stamp, box))

    def add(self, stamp: Stamp, box: Box | None, key: str) -> None:
        """Adds a crop whose entry is written to the index. Threads may call it at once.

        Args:
            stamp: The photograph as it was before it was read.
            box: The region of interest.
            key: The entry's key.

        Raises:
            CacheError: No space or no permission.
        """
        with self._lock:
            if self._known.get((stamp, box)) == key:
                return
            self._known[stamp, box] = key
            try:
                if self._file is None:
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
                    self._append({"run": self._record})
                place = None if box is None else [box.x, box.y, box.width, box.height]
                self._append({"crop": [*stamp, place, key]})
            except OSError as error:
                raise CacheError(write_finding(self._path, error)) from error

    def _append(self, value: dict[str, Any]) -> None:
        assert self._file is not None
        os.write(self._file, (json.dumps(value) + "\n").encode())

    def __enter__(self) -> "Index":
        """Returns the index itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Closes this process's file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None
