"""Decodes DICOM photographs as a viewer shows them: colours, the modality's scale, window and inversion."""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

_NEEDED = ("Rows", "Columns", "PhotometricInterpretation", "BitsStored", "PixelRepresentation", "PixelData")
"""What every DICOM file with a picture holds."""

_OPTIONAL = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")
"""Often there without a value, which means the same as absent."""

_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Which pydicom decodes to RGB."""


def read_dicom(path: Path) -> Image.Image:
    """Decodes the first frame of a DICOM file.

    Args:
        path: The file.

    Returns:
        8-bit grey or RGB. Grey values are scaled by the modality's slope and intercept (or table), then by the first
        window (or table of values of interest), without one from the least possible value to the largest.

    Raises:
        ValueError: It holds no picture, or one that cannot be shown.
    """
    import pydicom
    from pydicom.pixels import pixel_array

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that do not follow the standard and are not used here
        data = pydicom.dcmread(path)
        lacking = [name for name in _NEEDED if name not in data]
        if lacking:
            raise ValueError(f"its DICOM lacks {', '.join(lacking)}")
        if int(data.Rows) * int(data.Columns) > 1 << 28:
            raise ValueError(f"{data.Columns} x {data.Rows} pixels are too many")
        kind = str(data.PhotometricInterpretation)
        if kind not in _GREY + _COLOUR:
            raise ValueError(f"DICOM of the kind {kind} is not supported: save it as PNG")
        frame = pixel_array(data, index=0)
        if kind in _COLOUR:
            return Image.fromarray(_to_bytes(frame, 0, 2.0 ** int(data.BitsStored) - 1), "RGB")
        return Image.fromarray(_grey(data, frame), "L")


def _grey(data: "Dataset", stored: Any) -> Any:
    """Maps stored values [H, W] to uint8: the modality's scale, the window, the inversion, in the standard's order."""
    from pydicom.pixels import apply_modality_lut, apply_voi, apply_windowing

    for name in _OPTIONAL:
        if name in data and data[name].is_empty:
            del data[name]
    values, (first, last) = apply_modality_lut(stored, data), _modality_range(data)
    if data.get("VOILUTSequence"):
        shown = apply_voi(np.rint(values).astype(np.int64), data)
        first, last = 0.0, _table_end(data.VOILUTSequence)
    elif "WindowCenter" in data and "WindowWidth" in data:
        shown = apply_windowing(values, data)  # from `first` to `last`, which a negative slope puts below it
    else:
        shown, (first, last) = values, sorted((first, last))
    pixels = _to_bytes(shown, first, last)
    # Files of the standard that are inverted say so in both places, and mean one inversion.
    inverted = data.PhotometricInterpretation == "MONOCHROME1" or data.get("PresentationLUTShape") == "INVERSE"
    return 255 - pixels if inverted else pixels


def _modality_range(data: "Dataset") -> tuple[float, float]:
    """Returns what the least and the largest value that can be stored become by the modality's scale."""
    if data.get("ModalityLUTSequence"):
        return 0.0, _table_end(data.ModalityLUTSequence)
    bits = int(data.BitsStored)
    least = -(2.0 ** (bits - 1)) if int(data.PixelRepresentation) else 0.0
    edges = (least, least + 2.0**bits - 1)
    if "RescaleSlope" not in data or "RescaleIntercept" not in data:
        return edges
    slope, intercept = float(data.RescaleSlope), float(data.RescaleIntercept)
    if slope == 0:
        raise ValueError("its RescaleSlope is 0")
    return edges[0] * slope + intercept, edges[1] * slope + intercept


def _table_end(tables: Any) -> float:
    """Returns the largest value that a table's entries can have, of its descriptor (entries, first, bits)."""
    return 2.0 ** int(tables[0].LUTDescriptor[2]) - 1


def _to_bytes(values: Any, first: float, last: float) -> Any:
    scaled = (np.asarray(values, np.float64) - first) * (255.0 / (last - first))
    return np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
