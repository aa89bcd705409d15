"""Stores photographs that were sent to the page, in a temporary folder that is deleted at the end."""

import re
import secrets
import shutil
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path

from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import Finding, KDConvNeXtError, ManifestError

KEPT = 200
"""Photographs kept at most; the oldest makes room."""


@dataclass(frozen=True)
class Upload:
    """A photograph that was sent.

    Attributes:
        key: By which the page names it.
        name: As its sender named it, without folders.
        path: Where it lies, under another name.
        width: Columns after EXIF rotation.
        height: Rows after EXIF rotation.
    """

    key: str
    name: str
    path: Path
    width: int
    height: int


class Uploads:
    """Sent photographs, at most `KEPT`."""

    def __init__(self) -> None:
        """Makes the temporary folder."""
        self.folder = Path(tempfile.mkdtemp(prefix="kd-convnext-page-"))
        self._held: OrderedDict[str, Upload] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, name: str, data: bytes) -> Upload:
        """Keeps a photograph, after it has been decoded once.

        Args:
            name: As its sender names it; never part of a path here.
            data: Its bytes.

        Raises:
            ManifestError: It cannot be read, or is too large.
        """
        plain = re.split(r"[/\\]", name)[-1].strip()[:200] or "photograph"
        suffix = re.search(r"\.[A-Za-z0-9]{1,8}$", plain)
        key = secrets.token_hex(8)
        path = self.folder / f"{key}{suffix[0].lower() if suffix else ''}"
        path.write_bytes(data)
        try:
            height, width = read_image(path).shape[:2]
        except KDConvNeXtError as error:
            path.unlink(missing_ok=True)
            raise ManifestError(replace(error.findings[0], where=plain)) from error
        upload = Upload(key, plain, path, width, height)
        with self._lock:
            self._held[key] = upload
            while len(self._held) > KEPT:
                self._held.popitem(last=False)[1].path.unlink(missing_ok=True)
        return upload

    def get(self, key: str) -> Upload:
        """Finds a photograph.

        Raises:
            ManifestError: It is not there, or no longer.
        """
        with self._lock:
            found = self._held.get(key)
            if found is None:
                raise ManifestError(Finding("photograph", "it is no longer kept", "Drop it again."))
            self._held.move_to_end(key)
            return found

    def drop(self, key: str) -> None:
        """Deletes a photograph."""
        with self._lock:
            found = self._held.pop(key, None)
        if found is not None:
            found.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Deletes all photographs."""
        shutil.rmtree(self.folder, ignore_errors=True)
