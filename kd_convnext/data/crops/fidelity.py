"""Measures how faithful an enlarged crop is to the crop it was made from, and makes it so by back-projection.

A network that enlarges may smooth away what is there and paint what is not. Reduced again, an honest enlargement is the
crop: what differs was changed. The reverse does not hold: details below the crop's resolution are invented, however
well the reduced picture fits.
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels

TOLERANCE = 8
"""Levels of 255 by which a value may differ before it counts as changed."""

LOW_PSNR = 30.0
"""Decibels below which an enlargement is worth a look."""

_ROUNDS = 8
_PEAK = 255.0


@dataclass(frozen=True)
class Fidelity:
    """Compares a crop with its enlarged form, reduced again.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB; infinite where nothing differs.
        changed: Share of pixels with a channel that differs by more than `TOLERANCE` levels, 0 to 1.
    """

    psnr: float
    changed: float

    def __str__(self) -> str:
        """Returns both figures in words."""
        return f"{self.psnr:.1f} dB, {self.changed:.1%} of the pixels changed"


def fidelity(crop: Pixels, enlarged: Pixels) -> Fidelity:
    """Compares a crop with its enlarged form, each block of which is averaged again.

    Args:
        crop: uint8 RGB [h, w, 3], as it was enlarged.
        enlarged: uint8 RGB [h * scale, w * scale, 3].

    Returns:
        The figures.
    """
    difference = np.abs(_reduced(enlarged.astype(np.float32), crop) - crop)
    error = float(np.mean(np.square(difference, dtype=np.float64)))
    psnr = float("inf") if error == 0 else 10 * float(np.log10(_PEAK**2 / error))
    return Fidelity(psnr, float(np.mean((difference > TOLERANCE).any(axis=2))))


def consistent(crop: Pixels, enlarged: Pixels) -> Pixels:
    """Corrects an enlarged crop until, reduced again, it equals the crop to one level (Irani & Peleg 1991).

    What is missing is added back smoothly, by cubic interpolation, in a few rounds; what is left, block by block: then
    the reduced result is within half a level, the rounding.

    Args:
        crop: uint8 RGB [h, w, 3], as it was enlarged.
        enlarged: uint8 RGB [h * scale, w * scale, 3].

    Returns:
        uint8 RGB of the same size.
    """
    size, wanted = enlarged.shape[1::-1], crop.astype(np.float32)
    found = enlarged.astype(np.float32)
    for _ in range(_ROUNDS):
        missing = wanted - _reduced(found, crop)
        found = (found + cv2.resize(missing, size, interpolation=cv2.INTER_CUBIC).reshape(found.shape)).clip(0, _PEAK)
    return np.asarray(_balanced(found, wanted).round(), np.uint8)


def _balanced(enlarged: npt.NDArray[np.float32], crop: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Gives each block the mean of its pixel, every value moved by its share of the room left within 0..255."""
    (height, width), scale = crop.shape[:2], enlarged.shape[0] // crop.shape[0]
    blocks = enlarged.reshape(height, scale, width, scale, 3)
    missing = crop[:, None, :, None] - blocks.mean(axis=(1, 3), keepdims=True)
    room = np.where(missing > 0, _PEAK - blocks, blocks)
    share = room / np.maximum(room.mean(axis=(1, 3), keepdims=True), 1e-6)
    return np.asarray((blocks + missing * share).clip(0, _PEAK).reshape(enlarged.shape), np.float32)


def _reduced(enlarged: npt.NDArray[np.float32], crop: Pixels) -> npt.NDArray[np.float32]:
    height, width = crop.shape[:2]
    scale = enlarged.shape[0] // height
    means = enlarged.reshape(height, scale, width, scale, 3).mean(axis=(1, 3), dtype=np.float32)
    return np.asarray(means, np.float32)
