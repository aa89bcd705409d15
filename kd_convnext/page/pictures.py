"""Converts photographs for a browser: thumbnails, stored in a folder, and whole pictures."""

import base64
import contextlib
import hashlib
import io
import threading
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.files import atomic_write
from kd_convnext.data.manifest.images import read_image, read_size, turned_by_exif
from kd_convnext.errors import KDConvNeXtError

SIDE = 240
"""Longest side of a thumbnail, in pixels."""

_AT_ONCE = 2  # thumbnails made at the same time, in whatever threads


class Thumbnails:
    """Small pictures of photographs, made once and kept in a folder."""

    def __init__(self, folder: Path) -> None:
        """Names the folder; it is made when the first is kept."""
        self.folder = folder
        self._turn = threading.BoundedSemaphore(_AT_ONCE)
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def of(self, path: Path) -> bytes:
        """Returns a photograph's thumbnail, as JPEG.

        Args:
            path: The photograph.

        Raises:
            ManifestError: The photograph cannot be read.
        """
        kept = self._file(path)
        try:
            return kept.read_bytes()
        except OSError:
            pass  # not made yet
        with self._turn:
            data = _thumbnail(path)
        with contextlib.suppress(OSError):  # a full disk costs time, not the picture
            atomic_write(kept, lambda file: file.write(data))
        return data

    def make(self, paths: Iterable[Path]) -> None:
        """Starts making the thumbnails of many photographs, in the background."""
        if self._thread is not None and self._thread.is_alive():
            return
        self._thread = threading.Thread(target=self._make, args=([*paths],), name="thumbnails", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops the work in the background."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(timeout=10)

    def _make(self, paths: list[Path]) -> None:
        for path in paths:
            if self._stopped.is_set():
                return
            try:
                if not self._file(path).is_file():
                    self.of(path)
            except (KDConvNeXtError, OSError):
                pass  # whoever looks at it is told why

    def _file(self, path: Path) -> Path:
        try:
            found = path.stat()
            state = f"{path.absolute()}|{found.st_size}|{found.st_mtime_ns}|{found.st_ctime_ns}|{SIDE}"
        except OSError:
            state = str(path)
        key = hashlib.sha256(state.encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / key[:2] / f"{key}.jpg"


def _thumbnail(path: Path) -> bytes:
    read_size(path)  # says in words what is wrong with a file
    try:
        # Pillow decodes a JPEG at an eighth of its size for this, which is not the exact picture, nor need it be.
        with warnings.catch_warnings(), Image.open(path) as image:
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            if image.format == "JPEG":
                image.draft("RGB", (2 * SIDE, 2 * SIDE))
                picture = ImageOps.exif_transpose(image).convert("RGB")
                picture.thumbnail((SIDE, SIDE))
                return jpeg(np.asarray(picture), 80)
    except (OSError, ValueError, Image.DecompressionBombError):
        pass  # the careful reader says why, or can
    return jpeg(fitted(read_image(path), SIDE), 80)


def shown(path: Path) -> tuple[bytes, str]:
    """Returns a photograph as every browser shows it, turned as `read_image` does.

    Args:
        path: The photograph.

    Returns:
        Bytes and media type: the file's own where it is a JPEG that browsers turn as `read_image` does, else a PNG.

    Raises:
        ManifestError: The photograph cannot be read.
    """
    read_size(path)
    data = path.read_bytes()
    if data[:3] == b"\xff\xd8\xff" and turned_by_exif(path):
        return data, "image/jpeg"
    return png(read_image(path)), "image/png"


def fitted(pixels: Pixels, side: int) -> Pixels:
    """Reduces a picture until its longest side fits.

    Args:
        pixels: uint8 RGB [H, W, 3].
        side: In pixels.

    Returns:
        uint8 RGB [h, w, 3]; the same where it is small already.
    """
    if max(pixels.shape[:2]) <= side:
        return pixels
    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side))
    return np.asarray(picture, dtype=np.uint8)


def jpeg(pixels: Pixels, quality: int = 90) -> bytes:
    """Encodes uint8 RGB [H, W, 3] as JPEG."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=quality)
    return file.getvalue()


def png(pixels: Pixels) -> bytes:
    """Encodes uint8 RGB [H, W, 3] as PNG, fast rather than small."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()


def data_address(pixels: Pixels) -> str:
    """Returns uint8 RGB [H, W, 3] as an address that holds the picture itself."""
    return "data:image/jpeg;base64," + base64.b64encode(jpeg(pixels)).decode()
