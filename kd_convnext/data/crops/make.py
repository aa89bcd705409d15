"""Makes one crop: enlarges a region of interest and resizes it for storage."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.crops.fidelity import consistent
from kd_convnext.data.crops.resize import _fit, reduced_size, resize_to
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.upscaler import PIXEL_BUDGET, Piece, Upscaler, UpscalerIdentity
from kd_convnext.data.manifest.boxes import Box, crop_roi
from kd_convnext.data.manifest.images import read_image

_COLUMNS = 768


def make_crop(image: Pixels | Path | str, box: Box | None, spec: CropSpec, upscaler: Upscaler) -> Pixels:
    """Prepares one region of interest, by the very steps of the cache.

    Args:
        image: The photograph, uint8 RGB [H, W, 3], or its path.
        box: Region of interest in its pixels; None for all of it.
        spec: How to crop, reduce and store.
        upscaler: The upscaler that ``spec`` names.

    Returns:
        uint8 RGB [S, S, 3] with S = ``store_size``, or [h * scale, w * scale, 3] where that is None.

    Raises:
        ManifestError: The photograph cannot be read or the box does not fit it.
    """
    photograph = image if isinstance(image, np.ndarray) else read_image(Path(image))
    return enlarge(crop_roi(photograph, box, spec.roi_margin), spec, upscaler)


def enlarge(crop: Pixels, spec: CropSpec, upscaler: Upscaler) -> Pixels:
    """Reduces a crop to ``sr_max_side`` where it is larger, super-resolves it, brings it to the stored size.

    Args:
        crop: uint8 RGB [h, w, 3].
        spec: How to reduce and store.
        upscaler: The upscaler that ``spec`` names.

    Returns:
        As `make_crop`.
    """
    crop = resize_to(crop, *reduced_size(crop.shape[0], crop.shape[1], spec.sr_max_side))
    size, scale = spec.store_size, upscaler.identity.scale
    if spec.sr_consistent:
        upscaler = _Consistent(upscaler)
    if size is None:
        return upscaler(crop)
    if spec.resize == "stretch":
        return _enlarge_to(crop, upscaler, size, size)
    height, width = _fit(crop.shape[0] * scale, crop.shape[1] * scale, size)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = _enlarge_to(crop, upscaler, height, width)
    return square


@dataclass(frozen=True)
class _Consistent:
    """An upscaler whose results, reduced again, equal the crop; for crops that are enlarged as a whole."""

    upscaler: Upscaler

    @property
    def identity(self) -> UpscalerIdentity:
        return self.upscaler.identity

    def __call__(self, crop: Pixels) -> Pixels:
        return consistent(crop, self.upscaler(crop))

    def pieces(self, crop: Pixels) -> Iterator[Piece]:
        yield Piece(0, 0, self(crop))


def _enlarge_to(crop: Pixels, upscaler: Upscaler, height: int, width: int) -> Pixels:
    """Super-resolves a crop and brings it to a size; above the budget without ever holding the enlarged one."""
    scale = upscaler.identity.scale
    full = (crop.shape[0] * scale, crop.shape[1] * scale)
    if crop.shape[0] * crop.shape[1] <= PIXEL_BUDGET or full[0] < height or full[1] < width:
        return resize_to(upscaler(crop), height, width)
    total = np.zeros((height, width, 3))
    for top, left, pixels in upscaler.pieces(crop):
        rows, down = _shares(top, top + pixels.shape[0], full[0] / height, height)
        columns, across = _shares(left, left + pixels.shape[1], full[1] / width, width)
        total[rows, columns] += across @ _averaged(down, pixels.reshape(len(pixels), -1)).reshape(len(down), -1, 3)
        del pixels  # the next part is made before this name is given to it
    return total.round().clip(0, 255).astype(np.uint8)


def _averaged(shares: npt.NDArray[np.float32], levels: Pixels) -> npt.NDArray[np.float32]:
    """Averages rows of levels, some columns at a time: as floats all of them would take four times the memory.

    Args:
        shares: float32 [cells, rows].
        levels: uint8 [rows, columns].

    Returns:
        float32 [cells, columns].
    """
    blocks = range(0, levels.shape[1], _COLUMNS)
    return np.concatenate([shares @ levels[:, i : i + _COLUMNS].astype(np.float32) for i in blocks], axis=1)


def _shares(start: int, stop: int, factor: float, count: int) -> tuple[slice, npt.NDArray[np.float32]]:
    """Averaging by area along one axis: which of ``count`` cells pixels start..stop touch, and each one's share there.

    Args:
        start: First pixel.
        stop: Behind the last one.
        factor: Length of a cell in pixels.
        count: Number of cells.

    Returns:
        The cells touched, and their shares, [cells, pixels]; over all pixels those of a cell sum to 1.
    """
    first, last = int(start / factor), min(count, math.ceil(stop / factor))
    cells, pixels = np.arange(first, last)[:, None], np.arange(start, stop)
    common = np.minimum((cells + 1) * factor, pixels + 1) - np.maximum(cells * factor, pixels)
    return slice(first, last), (common.clip(0) / factor).astype(np.float32)
