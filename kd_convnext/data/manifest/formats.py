"""Opens photograph files: a short list of formats, heavy ones by extras, and regular files only."""

import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from kd_convnext.errors import Finding

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

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
        ValueError: Its pixels cannot be shown.
    """
    if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
        raise OSError("it is no regular file")  # a pipe would wait for ever, a device never end
    with path.open("rb") as file:
        head = file.read(132)
        file.seek(0)
        if head[_DICOM_MARK] == b"DICM":
            yield _dicom(path)
            return
        if _is_heif(head):
            _register_heif()
        with Image.open(file, formats=[name for name in FORMATS if name in _registered()]) as image:
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


_NEEDED = ("Rows", "Columns", "PhotometricInterpretation", "BitsStored", "PixelRepresentation", "PixelData")
"""What every DICOM file with a picture holds."""


def _dicom(path: Path) -> Image.Image:
    """Decodes the first frame of a DICOM file as a viewer shows it: window, inversion, 12 and 16 bits."""
    import pydicom
    from pydicom.pixels import apply_voi_lut, convert_color_space, pixel_array

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that do not follow the standard and are not used here
        data = pydicom.dcmread(path)
        lacking = [name for name in _NEEDED if name not in data]
        if lacking:
            raise ValueError(f"its DICOM lacks {', '.join(lacking)}")
        if int(data.Rows) * int(data.Columns) > 1 << 28:
            raise ValueError(f"{data.Columns} x {data.Rows} pixels are too many")
        frame = pixel_array(data, index=0)
        kind = str(data.PhotometricInterpretation)
        if frame.ndim == 3:
            if kind.startswith("YBR"):
                frame = convert_color_space(frame, kind, "RGB")
            return Image.fromarray(_to_bytes(frame, 0, float(2 ** int(data.BitsStored) - 1)), "RGB")
        if kind == "PALETTE COLOR":
            raise ValueError("palette colours of DICOM are not supported")
        return _grey(data, apply_voi_lut(frame.astype(np.float64) if _windowed(data) else frame, data), kind)


def _windowed(data: "Dataset") -> bool:
    return "WindowCenter" in data and "VOILUTSequence" not in data


def _grey(data: "Dataset", shown: Any, kind: str) -> Image.Image:
    bits = int(data.BitsStored)
    low, high = (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if int(data.PixelRepresentation) else (0.0, 2.0**bits - 1)
    pixels = _to_bytes(shown, low, high)
    return Image.fromarray(255 - pixels if kind == "MONOCHROME1" else pixels, "L")


def _to_bytes(values: Any, low: float, high: float) -> Any:
    scaled = (np.asarray(values, np.float64) - low) * (255.0 / max(high - low, 1.0))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
