"""Runs a super-resolution network over crops of any size, within a bound of memory."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import cv2
import numpy as np

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.machine import release_free_memory
from kd_convnext.data.crops.upscaling.upscaler import PIXEL_BUDGET, Piece, UpscalerIdentity, tiled

# oneDNN sums in another order with another number of threads where there is little to share out: measured up to
# 144 px with up to 64 threads (2e-6 of white). Such crops get one thread.
_ONE_THREAD_UP_TO = 1024


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
        for piece in tiled(crop, self._whole, known.scale, known.pixel_budget, known.tile_pad):
            yield piece
            if piece.pixels.shape[:2] != (crop.shape[0] * known.scale, crop.shape[1] * known.scale):
                # Under `memory_kept` the room of one tile does not fit the next, and the process would grow.
                release_free_memory()

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
    """Limits the pixels of all passes that run at once."""

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
