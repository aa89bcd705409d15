"""Mends what Pillow makes of TIFFs: 16-bit planes, white at zero, and thumbnails where the picture lies elsewhere."""

import contextlib
import struct
from collections.abc import Iterator
from typing import BinaryIO

from PIL import Image
from PIL.TiffImagePlugin import ImageFileDirectory_v2, TiffImageFile

_CANON_RAW = b"CR\2\0"
_KIND, _WIDTH, _HEIGHT, _BITS, _COLOURS, _PLANAR, _PARTS, _DNG_VERSION = 254, 256, 257, 258, 262, 284, 330, 50706
_REDUCED = 1
"""A bit of the kind of a picture: it is a smaller one of another in the file."""


def require_picture(image: TiffImageFile, file: BinaryIO) -> None:
    """Refuses camera raw, and files whose first picture is a thumbnail: what is read of them is not the photograph.

    Args:
        image: The file as Pillow has opened it, not decoded.
        file: The same.

    Raises:
        ValueError: It is such a file. Pyramids, whose further pictures are smaller than the first, are none.
    """
    tags, header = image.tag_v2, _header(file)
    area = tags[_WIDTH] * tags[_HEIGHT]
    inside = [*_areas(tags, header, file)]
    reduced = tags.get(_KIND, 0) & _REDUCED and (inside or image.n_frames > 1)
    if header[8:12] == _CANON_RAW or _DNG_VERSION in tags or reduced or any(other > area for other in inside):
        raise ValueError("camera raw or thumbnail: save as TIFF or JPEG")


def mend_planes(image: TiffImageFile) -> None:
    """Has uncompressed 16-bit planes decoded as such: Pillow takes them for planes of 8 bits, two pixels for one.

    Args:
        image: Opened, not decoded.
    """
    if image.tag_v2.get(_PLANAR) != 2 or {*image.tag_v2.get(_BITS, ())} != {16}:
        return
    order = "L" if image.tag_v2.prefix == b"II" else "B"
    image.tile = [
        tile._replace(args=(f"{tile.args[0]};16{order}", *tile.args[1:]))
        if tile.codec_name == "raw" and isinstance(tile.args, tuple) and len(tile.args[0]) == 1
        else tile
        for tile in image.tile
    ]


def white_at_zero(image: Image.Image) -> bool:
    """Says whether the values of a grey TIFF fall from white to black; Pillow turns those of 8 bits alone."""
    return isinstance(image, TiffImageFile) and image.tag_v2.get(_COLOURS) == 0


def _header(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read(16)


def _areas(tags: ImageFileDirectory_v2, header: bytes, file: BinaryIO) -> Iterator[int]:
    """Reads how many pixels the pictures have that are named as parts of the first; passes over broken ones."""
    places = tags.get(_PARTS, ())
    for place in places if isinstance(places, tuple) else (places,):
        with contextlib.suppress(OSError, OverflowError, SyntaxError, TypeError, ValueError, struct.error):
            file.seek(place)
            directory = ImageFileDirectory_v2(header[:8] if header[2] != 43 and header[3] != 43 else header)
            directory.load(file)
            yield int(directory.get(_WIDTH, 0)) * int(directory.get(_HEIGHT, 0))
