"""Defines the interface of upscalers, which enlarge one crop, and the simple ones.

Real-ESRGAN (Wang et al. 2021, https://arxiv.org/abs/2107.10833) by maintained code (``spandrel``) or by its
authors' packages (``realesrgan``), bicubic interpolation as the control, or nothing at all.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np

from kd_convnext.common.arrays import Pixels

UpscalerName = Literal["spandrel", "ncnn", "realesrgan", "bicubic", "none"]

SrPrecision = Literal["float32", "bfloat16"]

NETWORKS: tuple[UpscalerName, ...] = ("spandrel", "ncnn", "realesrgan")
"""Upscalers that need weights."""

PIXEL_BUDGET = 512 * 512
"""Largest crop, in pixels, that is enlarged in one pass; it bounds the memory. Larger crops are tiled."""

_BICUBIC_REACH = 2


class Piece(NamedTuple):
    """A part of an enlarged crop, uint8 RGB [h, w, 3], and where its upper left pixel belongs."""

    top: int
    left: int
    pixels: Pixels


@dataclass(frozen=True)
class Blend:
    """A second set of weights mixed into the first for weaker denoising.

    Attributes:
        strength: Share of the first, 0 to 1.
        weights_sha256: Hash of the second's file.
    """

    strength: float
    weights_sha256: str


@dataclass(frozen=True)
class UpscalerIdentity:
    """Identifies an upscaler by all that decides its pixels, apart from the input.

    Attributes:
        name: Which implementation.
        architecture: ``Compact`` (SRVGG), ``ESRGAN`` (RRDB), or the name again where there is no network.
        scale: Enlargement of each side.
        weights_sha256: Hash of the weights' file, None where there is none.
        precision: Arithmetic of the network, ``fp32`` or ``bf16``.
        pixel_budget: Crops above so many pixels are tiled; 0 means never.
        tile_pad: Context on each side of a tile, in input pixels; exact for Compact.
        blend: What was mixed into the weights, None for nothing.
    """

    name: UpscalerName
    architecture: str
    scale: int
    weights_sha256: str | None = None
    precision: str = "fp32"
    pixel_budget: int = 0
    tile_pad: int = 0
    blend: Blend | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types; ``blend`` only where there is one, as keys without it were made before."""
        return {name: value for name, value in asdict(self).items() if name != "blend" or value is not None}


class Upscaler(Protocol):
    """Anything that enlarges a crop by a whole factor."""

    @property
    def identity(self) -> UpscalerIdentity:
        """Identity of the upscaler: all that decides its pixels."""

    def __call__(self, crop: Pixels) -> Pixels:
        """Enlarges a crop.

        Args:
            crop: uint8 RGB [h, w, 3], any size from 1 px.

        Returns:
            uint8 RGB [h * scale, w * scale, 3].
        """

    def pieces(self, crop: Pixels) -> Iterator[Piece]:
        """Enlarges a crop part by part; the whole enlarged crop is never in memory.

        Args:
            crop: As in a call.

        Yields:
            Parts that together are what a call returns, each of at most `PIXEL_BUDGET` times scale squared pixels.
        """


@dataclass(frozen=True)
class NoUpscaler:
    """Leaves the crop as it is (scale 1)."""

    identity: UpscalerIdentity = UpscalerIdentity("none", "none", 1)

    def __call__(self, crop: Pixels) -> Pixels:
        """Returns the crop itself."""
        return crop

    def pieces(self, crop: Pixels) -> Iterator[Piece]:
        """Yields the crop itself."""
        yield Piece(0, 0, crop)


@dataclass(frozen=True)
class BicubicUpscaler:
    """Bicubic interpolation by 4: what super-resolution has to beat."""

    identity: UpscalerIdentity = UpscalerIdentity("bicubic", "bicubic", 4)

    def __call__(self, crop: Pixels) -> Pixels:
        """Enlarges the crop; see `Upscaler`."""
        scale = self.identity.scale
        size = (crop.shape[1] * scale, crop.shape[0] * scale)
        return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC), np.uint8)

    def pieces(self, crop: Pixels) -> Iterator[Piece]:
        """Enlarges the crop part by part; see `Upscaler`."""
        return tiled(crop, self, self.identity.scale, PIXEL_BUDGET, _BICUBIC_REACH)


def tiled(crop: Pixels, enlarge: Callable[[Pixels], Pixels], scale: int, budget: int, pad: int) -> Iterator[Piece]:
    """Enlarges a crop by square tiles with a margin of their surroundings, which is cut off again.

    Args:
        crop: uint8 [H, W, C].
        enlarge: Enlarges a tile by ``scale``.
        scale: Side of the result over side of the crop.
        budget: Largest crop in pixels that is enlarged in one pass.
        pad: Margin in pixels; as far as the upscaler looks around a pixel, or tiles are seen.
    """
    height, width = crop.shape[:2]
    if height * width <= budget:
        yield Piece(0, 0, enlarge(crop))
        return
    step = int(budget**0.5) - 2 * pad
    for y in range(0, height, step):
        for x in range(0, width, step):
            y0, x0 = max(y - pad, 0), max(x - pad, 0)
            y1, x1 = min(y + step, height), min(x + step, width)
            enlarged = enlarge(crop[y0 : y1 + pad, x0 : x1 + pad])
            inner = enlarged[(y - y0) * scale : (y1 - y0) * scale, (x - x0) * scale : (x1 - x0) * scale]
            yield Piece(y * scale, x * scale, inner)
