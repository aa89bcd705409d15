"""Resizes crops, stretched or padded."""

import cv2
import numpy as np

from kd_convnext.common.arrays import Pixels


def reduced_size(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """Returns the (height, width) at which a crop enters super-resolution."""
    return (height, width) if max_side is None or max(height, width) <= max_side else _fit(height, width, max_side)


def resize_to(image: Pixels, height: int, width: int) -> Pixels:
    """Resizes by area along sides that shrink and by cubic interpolation along sides that grow.

    Args:
        image: uint8 [h, w, 3].
        height: Wanted height in pixels.
        width: Wanted width in pixels.

    Returns:
        uint8 [height, width, 3].
    """
    smaller = (min(image.shape[0], height), min(image.shape[1], width))
    if smaller != image.shape[:2]:
        image = np.asarray(cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    if (height, width) != image.shape[:2]:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    return image


def _fit(height: int, width: int, side: int) -> tuple[int, int]:
    """Returns the size of the same proportions whose longer side is ``side``."""
    longer = max(height, width)
    return max(1, round(height * side / longer)), max(1, round(width * side / longer))
