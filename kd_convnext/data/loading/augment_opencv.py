"""Augments with plain OpenCV: the same changes as the albumentations pipeline, in a tenth of its time."""

from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels

if TYPE_CHECKING:
    from kd_convnext.data.loading.augment import AugmentSpec


_MILD = 1.25
"""Shrinking by less than this is done bilinearly: averaging costs seven times as much and hardly differs."""


def augmented(crop: Pixels, spec: "AugmentSpec", image_size: int, seed: int) -> Pixels:
    """Draws one view: shift, window, resize and flips, cut out of the crop in one piece.

    The draws have the distributions of `views.Views` with albumentations: flips with their probabilities, whole
    pixels of shift uniform in both directions, an area uniform between what must be kept and all, at a uniform place.

    Args:
        crop: uint8 [N, N, C].
        spec: What may change, and how much.
        image_size: Side of the result in pixels.
        seed: Decides the draw.

    Returns:
        uint8 [image_size, image_size, C].
    """
    draw = np.random.default_rng(seed).random(7).tolist()
    side = crop.shape[0]
    kept = 1 - spec.crop if spec.crop_of == "area" else (1 - spec.crop) ** 2
    window = round(side * (kept + (1 - kept) * draw[0]) ** 0.5)
    left, top = (int((side - window + 1) * place) for place in draw[1:3])
    # The picture moves by a shift, so the window moves over it by as much the other way.
    right, down = (int(side * spec.translate * (2 * shift - 1)) for shift in draw[3:5])
    view = _resized(_window(crop, left - right, top - down, window, spec.border == "reflect"), image_size)
    across, along = draw[5] < spec.horizontal_flip, draw[6] < spec.vertical_flip
    if across or along:
        view = np.asarray(cv2.flip(view, -1 if across and along else int(across)), np.uint8)
    return view


def _window(crop: Pixels, left: int, top: int, window: int, reflect: bool) -> Pixels:
    """Cuts a square out of a crop, of which a part may lie outside."""
    side = crop.shape[0]
    inside = crop[max(0, top) : max(0, top + window), max(0, left) : max(0, left + window)]
    outside = (max(0, -top), max(0, top + window - side), max(0, -left), max(0, left + window - side))
    if not any(outside):
        return inside
    if min(inside.shape[:2]) <= max(outside):  # more is outside than inside: slower, for any shift
        rows, columns = (_mirrored(start, window, side) for start in (top, left))
        picture = crop[rows[:, None], columns]
        if not reflect:
            picture[~_inside(top, window, side)] = 0
            picture[:, ~_inside(left, window, side)] = 0
        return picture
    border = cv2.BORDER_REFLECT_101 if reflect else cv2.BORDER_CONSTANT
    return np.asarray(cv2.copyMakeBorder(inside, *outside, border, value=0), np.uint8)


def _mirrored(start: int, count: int, side: int) -> npt.NDArray[np.int64]:
    """Positions start..start+count-1, reflected into 0..side-1 without repeating the edge."""
    return np.asarray(side - 1 - np.abs(side - 1 - np.abs(np.arange(start, start + count))), np.int64)


def _inside(start: int, count: int, side: int) -> npt.NDArray[np.bool_]:
    """Where positions start..start+count-1 lie in 0..side-1."""
    places = np.arange(start, start + count)
    return (places >= 0) & (places < side)


def _resized(picture: Pixels, size: int) -> Pixels:
    side = picture.shape[0]
    if side == size:
        return picture
    way = cv2.INTER_AREA if side > _MILD * size else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(picture, (size, size), interpolation=way), np.uint8)
