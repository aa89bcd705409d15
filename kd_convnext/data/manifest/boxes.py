"""Describes regions of interest and cuts them out of photographs."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kd_convnext.errors import ConfigError, Finding, ManifestError

_ROUNDING = 1e-6  # of a pixel
_LARGEST = 2**31


@dataclass(frozen=True)
class Box:
    """A region of interest in pixels of the photograph as it is seen (EXIF orientation applied).

    Attributes:
        x: Left edge, 0 at the left of the photograph.
        y: Upper edge, 0 at the top of the photograph.
        width: Columns, at least 1.
        height: Rows, at least 1.

    Examples:
        >>> crop_roi(np.zeros((100, 200, 3), np.uint8), Box(x=20, y=10, width=50, height=40), margin=0.1).shape
        (48, 60, 3)
    """

    x: int
    y: int
    width: int
    height: int


def box_of(texts: Sequence[str], *, decimal_comma: bool) -> Box | None:
    """Reads one box from a manifest's text as `read_manifest` does: fractions of pixels are rounded outward.

    Args:
        texts: x, y, width and height.
        decimal_comma: Whether numbers may have a comma.

    Returns:
        The box; None where nothing stands, or what `read_manifest` refuses.
    """
    numbers = [re.sub(r"^(-?[0-9]+),([0-9]+)$", r"\1.\2", text) if decimal_comma else text for text in texts]
    try:
        x, y, width, height = (float(number.replace("_", "?")) for number in numbers)
    except ValueError:
        return None
    if not all(math.isfinite(number) and abs(number) < _LARGEST for number in (x, y, width, height)):
        return None
    left, top = math.floor(x + _ROUNDING), math.floor(y + _ROUNDING)
    box = Box(left, top, math.ceil(x + width - _ROUNDING) - left, math.ceil(y + height - _ROUNDING) - top)
    return box if min(width, height, box.width, box.height) > 0 else None


def crop_roi(image: NDArray[np.uint8], box: Box | None, margin: float = 0.0) -> NDArray[np.uint8]:
    """Cuts the region of interest out of a photograph.

    Args:
        image: uint8 array [H, W, 3].
        box: The region in pixels, or None for the whole photograph.
        margin: Border added on each side as a fraction of the box's side (0.1 makes a box of 100 px 120 px
            wide), rounded to whole pixels and clipped at the edges of the photograph. At least 0.

    Returns:
        uint8 array [h, w, 3], a contiguous copy (the photograph's memory can be freed).

    Raises:
        ManifestError: The box is empty or not wholly inside the photograph.
        ConfigError: The margin is negative or not a number.
    """
    region = region_of(box, margin, *image.shape[:2])
    return image[region.y : region.y + region.height, region.x : region.x + region.width].copy()


def region_of(box: Box | None, margin: float, height: int, width: int) -> Box:
    """Finds the part of a photograph that `crop_roi` cuts out.

    Args:
        box: See `crop_roi`.
        margin: See `crop_roi`.
        height: Of the photograph in pixels.
        width: Of the photograph in pixels.

    Returns:
        The part, in pixels.

    Raises:
        ManifestError: See `crop_roi`.
        ConfigError: See `crop_roi`.
    """
    if not (math.isfinite(margin) and margin >= 0):
        raise ConfigError(Finding("roi_margin", f"{margin} is not a margin", "Use 0 or a small fraction, such as 0.1."))
    if box is None:
        return Box(0, 0, width, height)
    inside = box.x >= 0 and box.y >= 0 and box.x + box.width <= width and box.y + box.height <= height
    if box.width < 1 or box.height < 1 or not inside:
        what = f"{box} does not lie inside the photograph of {width} x {height} pixels"
        raise ManifestError(Finding("ROI box", what, "Give x, y, width, height in pixels of that photograph."))
    dx, dy = round(margin * box.width), round(margin * box.height)
    left, top = max(box.x - dx, 0), max(box.y - dy, 0)
    right, bottom = min(box.x + box.width + dx, width), min(box.y + box.height + dy, height)
    return Box(left, top, right - left, bottom - top)
