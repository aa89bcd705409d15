"""Super-resolution of one crop, behind one small interface.

Real-ESRGAN (Wang et al. 2021, https://arxiv.org/abs/2107.10833) by maintained code (``spandrel``) or by its
authors' packages (``realesrgan``), bicubic interpolation as the control, or nothing at all.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from kd_convnext.data.sr_weights import locate
from kd_convnext.errors import Finding, UpscalerError

Pixels = npt.NDArray[np.uint8]
UpscalerName = Literal["spandrel", "realesrgan", "bicubic", "none"]

PIXEL_BUDGET = 512 * 512
"""Largest crop, in pixels, that is enlarged in one pass; it bounds the memory. Larger crops are tiled."""

# oneDNN sums in another order with another number of threads where there is little to share out: measured up to
# 144 px with up to 64 threads (2e-6 of white). Such crops get one thread.
_ONE_THREAD_UP_TO = 1024
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
    """What decides the pixels of an upscaler, apart from its input.

    Attributes:
        name: Which implementation.
        architecture: ``Compact`` (SRVGG), ``ESRGAN`` (RRDB), or the name again where there is no network.
        scale: Enlargement of each side.
        weights_sha256: Hash of the weights' file, None where there is none.
        precision: Arithmetic of the network.
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
        """What decides the pixels."""

    def __call__(self, crop: Pixels) -> Pixels:
        """Enlarges a crop.

        Args:
            crop: uint8 RGB [h, w, 3], any size from 1 px.

        Returns:
            uint8 RGB [h * scale, w * scale, 3].
        """

    def pieces(self, crop: Pixels) -> Iterator[Piece]:
        """Enlarges a crop part by part, so that it never lies in memory as a whole.

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
        return _pieces(crop, self, self.identity.scale, PIXEL_BUDGET, _BICUBIC_REACH)


class NetworkUpscaler:
    """A network that enlarges one crop at a time, within a pixel budget.

    One crop a pass: batching does not pay on a CPU and would make pixels depend on the batch. Passes that several
    threads ask for run side by side, as long as the pixels in flight stay within a bound: it bounds the memory.
    """

    def __init__(
        self,
        identity: UpscalerIdentity,
        forward: Callable[[Pixels], Pixels],
        multiple: int = 1,
        in_flight: int = 2 * PIXEL_BUDGET,
    ) -> None:
        """Wraps a network.

        Args:
            identity: What decides the pixels, with the budget and the padding of tiles.
            forward: The network on uint8 RGB [h, w, 3] whose sides are multiples of ``multiple``.
            multiple: Sides that the network accepts; others are reflected up to it and cut afterwards.
            in_flight: Pixels of all passes at once; one pass may always run.
        """
        self.identity = identity
        self._forward = forward
        self._multiple = multiple
        self._gate = _Gate(in_flight)

    def __call__(self, crop: Pixels) -> Pixels:
        """Enlarges the crop; see `Upscaler`. An error in a tile is an error."""
        height, width = crop.shape[:2]
        if height * width <= self.identity.pixel_budget:
            return self._whole(crop)
        scale = self.identity.scale
        result = np.empty((height * scale, width * scale, 3), np.uint8)
        for top, left, pixels in self.pieces(crop):
            result[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        return result

    def pieces(self, crop: Pixels) -> Iterator[Piece]:
        """Enlarges the crop part by part; see `Upscaler`."""
        known = self.identity
        return _pieces(crop, self._whole, known.scale, known.pixel_budget, known.tile_pad)

    def _whole(self, crop: Pixels) -> Pixels:
        height, width = crop.shape[:2]
        below, right = -height % self._multiple, -width % self._multiple
        if below or right:
            # cv2 reflects crops of any size, torch's reflection refuses those smaller than the padding.
            crop = np.asarray(cv2.copyMakeBorder(crop, 0, below, 0, right, cv2.BORDER_REFLECT_101), np.uint8)
        scale = self.identity.scale
        with self._gate.pass_of(crop.shape[0] * crop.shape[1]), _threads_for(crop):
            return self._forward(crop)[: height * scale, : width * scale]


class _Gate:
    """Lets passes through as long as their pixels stay within a bound."""

    def __init__(self, bound: int) -> None:
        self._bound, self._inside = bound, 0
        self._changed = threading.Condition()

    @contextmanager
    def pass_of(self, pixels: int) -> Iterator[None]:
        """Waits for room, and makes room afterwards."""
        with self._changed:
            self._changed.wait_for(lambda: not self._inside or self._inside + pixels <= self._bound)
            self._inside += pixels
        try:
            yield
        finally:
            with self._changed:
                self._inside -= pixels
                self._changed.notify_all()


def _pieces(crop: Pixels, enlarge: Callable[[Pixels], Pixels], scale: int, budget: int, pad: int) -> Iterator[Piece]:
    """Enlarges square tiles with ``pad`` pixels of their surroundings, which are cut off again."""
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


@contextmanager
def _threads_for(crop: Pixels) -> Iterator[None]:
    """Gives a small crop one thread: its pixels would depend on their number."""
    if crop.shape[0] * crop.shape[1] > _ONE_THREAD_UP_TO:
        yield
        return
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def build_upscaler(
    name: UpscalerName,
    weights: Path | str | None,
    *,
    device: str = "cpu",
    weak: Path | str | None = None,
    strength: float = 1.0,
) -> Upscaler:
    """Builds an upscaler.

    Args:
        name: ``spandrel``, ``realesrgan`` (needs the extra of that name), ``bicubic`` or ``none``.
        weights: Official Real-ESRGAN weights, ``.pth`` (``params_ema`` or ``params``) or ``.safetensors``, or a name
            of `kd_convnext.data.sr_weights`; only tensors are ever loaded. Not used by ``bicubic`` and ``none``.
        device: Where a network runs, as torch names it.
        weak: Weights of the same network that denoise less, a file or a name, to blend with.
        strength: Denoising strength: share of ``weights`` in the blend, 0 to 1.

    Returns:
        The upscaler, ready.

    Raises:
        UpscalerError: Weights missing, unreadable, holding anything but tensors, of another architecture, not
            RGB to RGB, or not finite; ``weak`` of another network; ``realesrgan`` not installed; the device not
            usable.
    """
    if name == "none":
        return NoUpscaler()
    if name == "bicubic":
        return BicubicUpscaler()
    if weights is None:
        raise UpscalerError(
            Finding(
                "--sr_weights",
                f"the upscaler {name!r} needs weights and none are given",
                "Give an official Real-ESRGAN file or its name. Or choose --upscaler bicubic.",
            )
        )
    from kd_convnext.data.sr_networks import build_network

    return build_network(name, locate(str(weights)), device, None if weak is None else locate(str(weak)), strength)
