"""Opens photograph files: a short list of formats, heavy ones by extras, and regular files only."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from kd_convnext.data.manifest.dicom import read_dicom
from kd_convnext.data.manifest.tiff import mend_planes, require_picture
from kd_convnext.errors import Finding

FORMATS = ("JPEG", "MPO", "PNG", "TIFF", "WEBP", "BMP", "DIB", "GIF", "PPM", "JPEG2000", "AVIF", "HEIF")
"""What Pillow may decode, as it names them. Others are refused unread: some start a foreign program (EPS, gs)."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".dib", ".tif", ".tiff", ".webp", ".gif", ".jp2"}
    | {".heic", ".heif", ".avif", ".dcm", ".dicom"}
)
"""Names of photographs in folders, in lower case; any name may stand in a manifest."""

OTHER_SUFFIXES = frozenset(
    {".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".raf", ".rw2", ".psd", ".svg", ".eps", ".jxl", ".jxr", ".ppm"}
    | {".mpo", ".tga", ".ico", ".pcx", ".svs", ".ndpi"}
)
"""Pictures that are no photographs for us: listed as without an answer, never left out in silence."""

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1", b"heif")
_DICOM_MARK = slice(128, 132)


@contextmanager
def open_photograph(path: Path) -> Iterator[Image.Image]:
    """Opens a photograph, its pixels not yet decoded.

    Args:
        path: The file.

    Yields:
        The picture. DICOM comes as 8-bit grey or colour, its window applied; its identifiers are never copied.

    Raises:
        OSError: It is not there, no regular file, or of no known format.
        ValueError: Its pixels cannot be shown, or are those of a thumbnail.
    """
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise OSError("it is no regular file")  # a pipe would wait for ever, a device never end
    with path.open("rb") as file:
        head = file.read(132)
        file.seek(0)
        if head[_DICOM_MARK] == b"DICM":
            yield read_dicom(path)
            return
        if _is_heif(head):
            _register_heif()
        with Image.open(file, formats=[name for name in FORMATS if name in _registered()]) as image:
            if isinstance(image, TiffImageFile):
                require_picture(image, file)
                mend_planes(image)
            yield image


def missing_extra(path: Path) -> Finding | None:
    """Names the extra that a photograph's format needs, None where it needs none or has it."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return None
        with path.open("rb") as file:
            head = file.read(132)
    except (OSError, ValueError):
        return None
    if head[_DICOM_MARK] == b"DICM" and not _importable("pydicom"):
        return _lacking(path, "DICOM", "pydicom", "dicom")
    if _is_heif(head) and not _importable("pillow_heif"):
        return _lacking(path, "HEIC", "pillow-heif", "heic")
    if head[4:12] in (b"ftypavif", b"ftypavis") and "AVIF" not in _registered():
        return _lacking(path, "AVIF", "pillow-heif and a newer Pillow", "heic")
    return None


def _lacking(path: Path, form: str, package: str, extra: str) -> Finding:
    remedy = f'pip install "kd-convnext[{extra}]", or save the photograph as JPEG or PNG.'
    return Finding(str(path), f"the photograph cannot be read ({form} needs {package})", remedy)


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS


def _registered() -> dict[str, Any]:
    Image.init()
    return Image.OPEN


def _importable(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def _register_heif() -> None:
    if _importable("pillow_heif"):
        import pillow_heif

        pillow_heif.register_heif_opener()
