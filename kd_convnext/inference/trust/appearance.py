"""Describes colours, textures and fine detail of a picture, whatever it shows, for the gate."""

import cv2
import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Values

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
    """Returns texture, then detail; of whole numbers, so that every runtime finds the same."""
    levels = np.asarray(picture, np.int32)
    texture, detail = [], []
    for lag in LAGS:
        apart = [levels[:, lag:] - levels[:, :-lag], levels[lag:] - levels[:-lag]]
        detail.append(np.log(NO_DETAIL + _mean_squares(apart)))
        opposed = [_opponents(each) for each in apart]
        squares = NO_DETAIL + _mean_squares(opposed)
        sizes = np.mean([np.abs(each).mean(axis=(0, 1)) for each in opposed], axis=0)
        texture += [np.log(squares), 2 * np.log(NO_DETAIL + sizes) - np.log(squares)]
    return texture + detail


def _opponents(values: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
    if values.shape[2] == 1:
        return values
    red, green, blue = values[..., 0], values[..., 1], values[..., 2]
    return np.stack([red + green + blue, red - green, red + green - 2 * blue], axis=2)


def _mean_squares(parts: list[npt.NDArray[np.int32]]) -> Values:
    return np.asarray(np.mean([(each**2).mean(axis=(0, 1)) for each in parts], axis=0))


def _halved(values: npt.NDArray[np.float32], side: int) -> npt.NDArray[np.float32]:
    smaller = cv2.resize(values, (side, side), interpolation=cv2.INTER_AREA)
    return np.asarray(smaller, np.float32).reshape(side, side, -1)
