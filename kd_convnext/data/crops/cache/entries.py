"""Reads and writes stored crops as files with a checksum."""

import os
import zlib
from pathlib import Path

import cv2
import numpy as np

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.files import atomic_write, is_special, read_bytes, require_handles, write_finding
from kd_convnext.data.crops.fidelity import Fidelity
from kd_convnext.errors import CacheError

PNG_LEVEL = 3

# One filter for all rows decodes twice as fast as libpng's choice row by row, at the same size. OpenCV before 4.11
# has no such option; the pixels are the same.
_PNG_OPTIONS = [cv2.IMWRITE_PNG_COMPRESSION, PNG_LEVEL]
if hasattr(cv2, "IMWRITE_PNG_FILTER"):
    _PNG_OPTIONS += [cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NOTE, _NOTE_REACH = b"kd-convnext fidelity\0", 512
_HEADER_BYTES = 24  # signature, length and type of IHDR, width, height


def write_entry(path: Path, pixels: Pixels, kept: Fidelity | None = None) -> int:
    """Stores a crop as PNG; the file name's key is written inside as well.

    Args:
        path: ``<key>.png``.
        pixels: uint8 RGB [h, w, 3].
        kept: How faithful its enlargement was, written inside too; None where nobody measured it.

    Returns:
        Size of the file in bytes.

    Raises:
        CacheError: No space, no permission, or a file in place of a folder.
    """
    content = encode(pixels, path.stem, kept)
    try:
        atomic_write(path, lambda file: file.write(content))
    except OSError as error:
        raise CacheError(write_finding(path, error)) from error
    return len(content)


def encode(pixels: Pixels, key: str, kept: Fidelity | None = None) -> bytes:
    """Encodes a crop as PNG with its key in a text chunk at the end.

    Args:
        pixels: uint8 RGB [h, w, 3].
        key: 64 hexadecimal digits.
        kept: How faithful its enlargement was, for a text chunk before that.

    Returns:
        The bytes of the file.
    """
    bgr = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    _, encoded = cv2.imencode(".png", bgr, _PNG_OPTIONS)
    note = b"" if kept is None else _chunk(b"tEXt", _NOTE + f"{kept.psnr} {kept.changed}".encode())
    return encoded.tobytes()[: -len(_chunk(b"IEND", b""))] + note + _tail(key)


def entry_fidelity(path: Path) -> Fidelity | None:
    """Reads how faithful the enlargement behind an entry was.

    Args:
        path: ``<key>.png``.

    Returns:
        The figures, or None where there is no such entry, or it was made without measuring.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _NOTE_REACH))
            _, found, rest = file.read().rpartition(_NOTE)
        psnr, changed = rest[: rest.index(b"tEXt") - 8].decode().split()
        return Fidelity(float(psnr), float(changed)) if found else None
    except (OSError, ValueError):
        return None


def entry_size(path: Path, side: int | None) -> int | None:
    """Looks at the two ends of an entry: enough against a missing, cut, foreign or wrong-sized file.

    Args:
        path: ``<key>.png``.
        side: Expected height and width in pixels; None for any.

    Returns:
        Size of the file in bytes, or None where the entry is not there or not whole.

    Raises:
        CacheError: It could not be looked at, as too many files are open.
    """
    tail = _tail(path.stem)
    if is_special(path):
        return None
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - len(tail)))
            whole = file.read() == tail
    except OSError as error:
        require_handles(path, error)
        return None
    return size if whole and _fits(head, side) else None


def read_entry(path: Path, side: int | None) -> Pixels | None:
    """Reads an entry, checking every byte (the checksums of PNG and the key inside).

    Args:
        path: ``<key>.png``.
        side: Expected height and width in pixels; None for any.

    Returns:
        uint8 RGB [h, w, 3], or None where the entry is not there or not as it was written.

    Raises:
        CacheError: It could not be looked at, as too many files are open.
    """
    try:
        content = read_bytes(path)
    except OSError as error:
        require_handles(path, error)
        return None
    if not (_fits(content[:_HEADER_BYTES], side) and content.endswith(_tail(path.stem)) and _intact(content)):
        return None
    bgr = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    return None if bgr is None else np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def _tail(key: str) -> bytes:
    return _chunk(b"tEXt", b"kd-convnext key\0" + key.encode()) + _chunk(b"IEND", b"")


def _fits(head: bytes, side: int | None) -> bool:
    if len(head) < _HEADER_BYTES or not head.startswith(_SIGNATURE):
        return False
    return side is None or head[16:24] == side.to_bytes(4, "big") * 2


def _intact(content: bytes) -> bool:
    """Checks the checksum of each PNG chunk: OpenCV would return a part of a damaged picture without an error."""
    view, at = memoryview(content), len(_SIGNATURE)
    while at < len(view):
        end = at + 12 + int.from_bytes(view[at : at + 4], "big")
        if end > len(view) or zlib.crc32(view[at + 4 : end - 4]) != int.from_bytes(view[end - 4 : end], "big"):
            return False
        at = end
    return True
