"""Reads photographs into arrays, upright and within a limit of pixels.

Every photograph is read here and nowhere else, so that a box means the same pixels in the manifest's checks,
in the cache and when a new photograph is classified.
"""

import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from PIL.TiffImagePlugin import TiffImageFile

from kd_convnext.data.manifest.damage import require_end, require_not_cut, require_parts
from kd_convnext.data.manifest.formats import missing_extra, open_photograph
from kd_convnext.data.manifest.tiff import white_at_zero
from kd_convnext.errors import Finding, ManifestError

MAX_PIXELS = 200_000_000
"""Photographs with more pixels are refused: 200 MP are 600 MB in memory."""

_LONGEST_SIDE = 1 << 18
"""Pixels; a decoder keeps an address for each row, in gigabytes where a picture is one pixel wide."""

_EIGHT_BITS, _TWELVE_BITS = 255, 4095
_JPEG = ("JPEG", "MPO")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap width and height
_PNG_SIGNATURE_BYTES = 8
_STRIP = 1 << 19  # bytes


def read_image(path: str | Path) -> NDArray[np.uint8]:
    """Reads a photograph as 8-bit RGB, the way a viewer shows it.

    The EXIF orientation is applied. Gray becomes RGB; transparency is laid over white; 16-bit gray is divided
    by 257 (65535 becomes 255) and rounded, 12-bit gray or colour (nothing above 4095; of alpha alike, or of 16 bits)
    by 4095 / 255; of other 16-bit colour the high byte is kept (within one level of that);
    palettes and CMYK are converted, colour profiles ignored; of an animation the first frame is taken. JPEGs
    are decoded at full size, never in draft mode.

    Args:
        path: The photograph (JPEG, PNG, TIFF, WebP, BMP, GIF, JPEG 2000, AVIF; HEIC and DICOM by extras).

    Returns:
        uint8 array [height, width, 3], values 0 to 255, contiguous and writable.

    Raises:
        ManifestError: The file is missing, damaged, truncated, over 200 megapixels, or of a pixel type
            (32-bit) whose black and white points are unknown.
    """
    path = Path(path)
    with _naming(path), _pixel_limit(), open_photograph(path) as image:
        _refuse_too_large(image.size)
        _refuse_lost_parts(path, image)
        if image.format == "JPEG":
            require_not_cut(path, image)
        deep = image.mode in ("RGB", "RGBA") and any(";16" in str(part.args) for part in getattr(image, "tile", ()))
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1) if deep else 1
        ImageOps.exif_transpose(image, in_place=True)
        if deep and _largest(image) <= _TWELVE_BITS >> 8:
            image = _twelve_bit_colour(path, image, orientation)
        return _as_rgb(image)


def read_size(path: str | Path) -> tuple[int, int]:
    """Reads width and height from the file's header, without decoding the pixels.

    Args:
        path: The photograph.

    Returns:
        Width and height in pixels after the EXIF orientation: what `read_image` will return.

    Raises:
        ManifestError: The file is missing, empty, not an image, or over 200 megapixels.
    """
    path = Path(path)
    with _naming(path), _pixel_limit(), open_photograph(path) as image:
        _refuse_too_large(image.size)
        width, height = image.size
        if isinstance(image, TiffImageFile):  # by its version, Pillow has applied the orientation to the size
            width, height = (int(image.tag_v2[tag]) for tag in (ExifTags.Base.ImageWidth, ExifTags.Base.ImageLength))
        # The base class's method: that of PNG decodes the pixels to see whether EXIF comes after them.
        orientation = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
        if image.format == "PNG" and orientation is None:
            orientation = _late_png_orientation(path)
    return (height, width) if orientation in _TURNED else (width, height)


def turned_by_exif(path: str | Path) -> bool:
    """Says whether a photograph's EXIF alone turns it as `read_image` does, which looks into XMP too.

    Args:
        path: The photograph.

    Raises:
        ManifestError: See `read_size`.
    """
    path = Path(path)
    with _naming(path), _pixel_limit(), open_photograph(path) as image:
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        alone, both = (one.get(ExifTags.Base.Orientation, 1) for one in (exif, image.getexif()))
        return bool(alone == both)


def read_thumbnail(path: str | Path, *sizes: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Reads a photograph much reduced, in grey, the way a viewer shows it; JPEGs are decoded at an eighth.

    Args:
        path: The photograph.
        sizes: Pairs of width and height in pixels.

    Returns:
        uint8 arrays [height, width], one for each size.

    Raises:
        ManifestError: See `read_image`.
    """
    path = Path(path)
    with _naming(path), _pixel_limit(), open_photograph(path) as image:
        _refuse_too_large(image.size)
        _refuse_lost_parts(path, image)
        image.draft("RGB", (4 * max(size[0] for size in sizes), 4 * max(size[1] for size in sizes)))
        ImageOps.exif_transpose(image, in_place=True)
        grey = image.convert("L") if image.mode in ("RGB", "L") else Image.fromarray(_as_rgb(image)).convert("L")
        return [np.asarray(grey.resize(size, Image.Resampling.BOX)) for size in sizes]


def _as_rgb(image: Image.Image) -> NDArray[np.uint8]:
    """Returns a decoded picture of any mode as [H, W, 3] uint8."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        gray = _gray16_as_rgb(np.asarray(image))
        return 255 - gray if white_at_zero(image) else gray
    if image.mode == "F":
        raise ValueError("32-bit pixels, black and white unknown")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        picture = image.convert("RGBA")
        paper = Image.new("RGBA", picture.size, "white")
        image = Image.alpha_composite(paper, picture)
    return _pixels(image if image.mode == "RGB" else image.convert("RGB"))


def _largest(image: Image.Image) -> int:
    """Returns the largest value of the colours of an RGB or RGBA picture."""
    extremes: Any = image.getextrema()
    return max(int(largest) for _, largest in extremes[:3])


def _pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Copies an RGB picture strip by strip.

    At once it would pass through two more copies of its size, whose pages come from the system anew each time: two
    fifths of the time of reading 12 megapixels.
    """
    width, height = image.size
    pixels = np.empty((height, width, 3), np.uint8)
    rows = max(1, _STRIP // (3 * width))
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        pixels[top:bottom] = np.asarray(image.crop((0, top, width, bottom)))
    return pixels


def _gray16_as_rgb(values: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Scales 16-bit gray [H, W] to [H, W, 3] uint8; Pillow also gives 16-bit files as 32-bit integers."""
    wide = values.astype(np.int64)
    if wide.min() < 0 or wide.max() > 65535:
        raise ValueError("32-bit pixels, black and white unknown")
    if _EIGHT_BITS < wide.max() <= _TWELVE_BITS:  # cameras of 12 bits store them in 16: else black to the eye
        gray = ((wide * 255 + _TWELVE_BITS // 2) // _TWELVE_BITS).astype(np.uint8)
    else:
        gray = ((wide + 128) // 257).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _twelve_bit_colour(path: Path, image: Image.Image, orientation: int) -> Image.Image:
    """Reads colour of 12 bits in 16 anew, of which Pillow gives only the high byte: 16 levels, black to the eye.

    Args:
        path: The photograph.
        image: Its high bytes as Pillow has read and turned them, RGB or RGBA.
        orientation: Its EXIF orientation.

    Returns:
        The same of 8 bits.

    Raises:
        ValueError: OpenCV reads something else.
    """
    import cv2

    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    found: Any = cv2.imdecode(np.fromfile(path, np.uint8), flags)
    high = np.asarray(image)
    if found is not None and found.dtype == np.uint16 and found.ndim == 3 and found.shape[2] >= high.shape[2]:
        colour = found[..., [2, 1, 0, 3][: high.shape[2]]]
        for wide in (colour, _turned(colour, orientation)):  # some of its decoders turn by themselves
            if wide.shape == high.shape and np.array_equal(wide >> 8, high):
                full = [_TWELVE_BITS] * 3 + [_TWELVE_BITS if wide[..., 3:].max(initial=0) <= _TWELVE_BITS else 65535]
                scale = np.array(full[: high.shape[2]], np.uint32)
                return Image.fromarray(((wide.astype(np.uint32) * 255 + scale // 2) // scale).astype(np.uint8))
    raise ValueError("12-bit colour that cannot be decoded: save it with 8 bits")


def _turned(wide: NDArray[np.uint16], orientation: int) -> NDArray[np.uint16]:
    """Turns [H, W, 3] as an EXIF orientation says, 1 to 8."""
    rows = wide.swapaxes(0, 1) if orientation in _TURNED else wide
    rows = rows[::-1] if orientation in (3, 4, 7, 8) else rows
    return rows[:, ::-1] if orientation in (2, 3, 6, 7) else rows


def _late_png_orientation(path: Path) -> int:
    """Looks for an EXIF block behind the pixels of a PNG, which Pillow finds only by decoding them."""
    with path.open("rb") as file:
        file.seek(_PNG_SIGNATURE_BYTES)
        while len(head := file.read(8)) == 8:
            length, kind = struct.unpack(">I4s", head)
            if kind == b"eXIf":
                exif = Image.Exif()
                exif.load(file.read(length))
                return int(exif.get(ExifTags.Base.Orientation, 1))
            if kind == b"IEND":
                return 1
            file.seek(length + 4, 1)
    raise OSError("the file is truncated")


def _refuse_lost_parts(path: Path, image: Image.Image) -> None:
    if image.format in _JPEG:
        require_end(path)
    if isinstance(image, TiffImageFile):
        require_parts(image)


def _refuse_too_large(size: tuple[int, int]) -> None:
    if max(size) > _LONGEST_SIDE:
        raise ValueError(f"a side of {max(size)} pixels is more than {_LONGEST_SIDE}")
    if size[0] * size[1] > MAX_PIXELS:
        raise ValueError(f"{size[0]} x {size[1]} pixels are more than {MAX_PIXELS // 10**6} megapixels")


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turns whatever a decoder raises into one error that names the file."""
    try:
        str(path).encode()  # a name that is no text could stand in no table
        yield
    except FileNotFoundError as error:
        finding = Finding(str(path), "the photograph does not exist", "Correct the path or restore the file.")
        raise ManifestError(finding) from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, ...
        extra = missing_extra(path)
        if extra is not None:
            raise ManifestError(extra) from error
        reason = _reason(path, error)
        remedy = (
            "Replace the file by one that an image viewer opens, or leave it out (--on_error skip, in a fit "
            "--data.on_error skip)."
        )
        raise ManifestError(Finding(str(path), f"the photograph cannot be read ({reason})", remedy)) from error


def _reason(path: Path, error: Exception) -> str:
    if isinstance(error, IsADirectoryError):
        return "it is a folder"
    if isinstance(error, UnicodeEncodeError):
        return "its name is not in UTF-8: rename it"
    if isinstance(error, UnidentifiedImageError):
        return "the file is empty" if path.stat().st_size == 0 else "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:  # among them a name too long, links in a circle, no permission
        return error.strerror
    return str(error) or type(error).__name__


_limit_lock = threading.Lock()
_limit_users = 0
_limit_before: int | None = None


@contextmanager
def _pixel_limit() -> Iterator[None]:
    """Raises Pillow's process-wide size limit while photographs are read, in any number of threads."""
    global _limit_users, _limit_before
    with _limit_lock:
        if _limit_users == 0:
            _limit_before, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, MAX_PIXELS
        _limit_users += 1
    try:
        yield
    finally:
        with _limit_lock:
            _limit_users -= 1
            if _limit_users == 0:
                Image.MAX_IMAGE_PIXELS = _limit_before
