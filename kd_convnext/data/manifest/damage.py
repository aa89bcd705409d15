"""Finds damage inside files that decoders pass over: JPEGs without an end or cut and closed again, TIFFs without parts.

A decoder fills what is missing with grey, or with whatever zeros happen to mean, and says nothing. What cannot be seen
here: other pixels in an uncompressed file (BMP, TIFF), a changed byte in the compressed data that still decodes, a
progressive JPEG that has lost its last refinements, and less than about two rows of blocks at the bottom.
"""

import io
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

_END = b"\xff\xd9"
_SCAN = b"\xff\xda"
_TAIL = 1 << 16
"""Bytes at the end of a file that are looked at first."""

_BLOCK = 16
"""Pixels of the largest unit of JPEG's compression."""

_WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def require_parts(image: TiffImageFile) -> None:
    """Refuses a TIFF whose strips or tiles do not cover the picture: a decoder leaves the rest black.

    Args:
        image: The opened file, not decoded.

    Raises:
        OSError: Some are missing.
    """
    width, height = image.size
    places = {(*place,) for _, place, *_ in image.tile if place is not None}  # one for all colours
    if sum((right - left) * (low - top) for left, top, right, low in places) < width * height:
        raise OSError("parts of the picture are missing")


def require_end(path: Path) -> None:
    """Refuses a JPEG without its end marker: cut off, or its end overwritten.

    Args:
        path: A JPEG file.

    Raises:
        OSError: There is no end marker behind the compressed data.
    """
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(max(0, size - _TAIL))
        if file.read().rfind(_END) >= 0:
            return
        file.seek(0)
        content = file.read()
    if content.find(_END, _scan_start(content)) < 0:
        raise OSError("the file is truncated, or overwritten inside: the end of the JPEG data is missing")


def require_not_cut(path: Path, image: Image.Image) -> None:
    """Refuses a JPEG that was cut and closed by an end marker: its decoded bottom is one flat colour without data.

    The bottom of a whole picture may be flat too, but then some of its data are there for it. Leaving out less than
    half of what a flat bottom needs at least changes nothing above it; in a cut file it changes what is above.

    Args:
        path: The file.
        image: The same, opened, not turned.

    Raises:
        OSError: It was cut.
    """
    width, height = image.size
    if height < 2 * _BLOCK or image.info.get("progressive") or not _flat(image, _BLOCK):
        return
    pixels = np.asarray(image)
    same = (pixels == pixels[-1, -1]).reshape(height, -1).all(axis=1)
    flat = int(np.argmin(same[::-1])) if not same.all() else height
    left_out = (flat // _BLOCK) * (width // _BLOCK) * 3 // 8
    content = path.read_bytes()
    start, end = _scan_start(content), content.rfind(_END)
    if flat == height or left_out < 1 or start + left_out >= end or 0 <= content.find(_SCAN, start + 2) < end:
        return
    shorter = content[: end - left_out].rstrip(b"\xff") + _END
    with Image.open(io.BytesIO(shorter), formats=["JPEG"]) as other:
        above = np.asarray(other)[: height - flat]
    if not np.array_equal(above, pixels[: height - flat]):
        raise OSError(f"the file was cut: the lowest {flat} of {height} rows are missing")


def _flat(image: Image.Image, rows: int) -> bool:
    width, height = image.size
    extremes = image.crop((0, height - rows, width, height)).getextrema()
    bands = extremes if isinstance(extremes[0], tuple) else (extremes,)
    return all(low == high for low, high in bands)


def _scan_start(content: bytes) -> int:
    """Finds where the compressed data begin, behind the headers (which may hold a small JPEG of their own)."""
    place = 2
    while place + 4 <= len(content) and content[place] == 0xFF:
        kind = content[place + 1]
        if kind == _SCAN[1]:
            return place
        if kind == 0xFF:
            place += 1
        elif kind in _WITHOUT_LENGTH:
            place += 2
        else:
            place += 2 + int.from_bytes(content[place + 2 : place + 4], "big")
    return min(place, len(content))
