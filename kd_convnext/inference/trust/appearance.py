"""Describes colours, textures and fine detail of a picture, whatever it shows, for the gate."""

import cv2
import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Values

Levels = npt.NDArray[np.int16]

QUANTILES = np.array([0.02, 0.1, 0.25, 0.5, 0.75, 0.9, 0.98])
"""Which of each channel's levels are taken."""

SIDE = 32
"""Contrasts are those of the picture at this side and below."""

NO_CONTRAST = 1e-4
"""A hundredth of the range, squared: below the noise of a camera."""

LAGS = (1, 2, 4)
"""Pixels between those that are compared for texture and detail, at the picture's own size."""

NO_DETAIL = 0.5
"""Of differences in levels: below the rounding to whole ones."""

ENTRIES = 21
"""Of an appearance for each channel: seven quantiles, five contrasts, and for each lag three differences."""


def appearance_of(picture: npt.NDArray[np.uint8]) -> Values:
    """Describes colours and textures.

    Args:
        picture: uint8 [S, S, C], C 1 or 3, S above 4.

    Returns:
        float64 [21 C]. First seven quantiles of each channel (lightness, a and b of CIELAB; or grey). Then for each
        channel the logarithm of the mean squared contrast between neighbours at 32, 16, 8, 4 and 2 pixels a side. Then
        for each of `LAGS`, of the differences between pixels so far apart: the logarithms of their mean squares and of
        how evenly they are spread (noise is everywhere, edges are not), both of sum, red minus green, and yellow minus
        blue; at last, for each of them, the logarithms of the mean squares of the channels, which is the *detail*.
    """
    channels = picture.shape[2]
    colours = np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2LAB) if channels == 3 else picture).reshape(-1, channels)
    below = np.stack([np.bincount(colours[:, channel], minlength=256).cumsum() for channel in range(channels)])
    quantiles = np.stack([np.searchsorted(counts, QUANTILES * len(colours)) for counts in below]) / 255
    return np.concatenate([quantiles.ravel(), *_contrasts(picture), *_differences(picture)])


def _contrasts(picture: npt.NDArray[np.uint8]) -> list[Values]:
    level = _halved(np.asarray(picture / 255, np.float32), SIDE)
    found = []
    while len(level) > 1:
        coarser = _halved(level, len(level) // 2)
        detail = level - coarser.repeat(2, axis=0).repeat(2, axis=1)
        found.append(np.log(NO_CONTRAST + (detail**2).mean(axis=(0, 1), dtype=np.float64)))
        level = coarser
    return found


def _differences(picture: npt.NDArray[np.uint8]) -> list[Values]:
    """Returns texture, then detail; from sums of whole numbers, so that every runtime finds the same."""
    channels = [np.asarray(channel, np.int16) for channel in cv2.split(picture)]
    opponents = _opponents(channels)
    texture, detail = [], []
    for lag in LAGS:
        _, squares = _means(channels, lag)
        sizes, opposed = _means(opponents, lag)
        texture += [np.log(opposed), 2 * np.log(sizes) - np.log(opposed)]
        detail.append(np.log(squares))
    return texture + detail


def _opponents(channels: list[Levels]) -> list[Levels]:
    if len(channels) == 1:
        return channels
    red, green, blue = channels
    return [red + green + blue, red - green, red + green - 2 * blue]


def _means(planes: list[Levels], lag: int) -> tuple[Values, Values]:
    """Returns the mean size and the mean square of the differences along both sides, of each plane."""
    sums = np.zeros((2, len(planes)))
    for place, plane in enumerate(planes):
        for one, other in ((plane[:, lag:], plane[:, :-lag]), (plane[lag:], plane[:-lag])):
            size = cv2.absdiff(one, other)
            sums[:, place] += [cv2.sumElems(each)[0] for each in (size, cv2.multiply(size, size, dtype=cv2.CV_32S))]
    side = len(planes[0])
    sizes, squares = NO_DETAIL + sums / (2 * side * (side - lag))
    return sizes, squares


def _halved(values: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    smaller = cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, np.float32).reshape(side, side, -1)
