"""Runs Real-ESRGAN networks with ncnn on a CPU: Winograd's algorithm, fewer products than a matrix product.

Lavin and Gray 2015, https://arxiv.org/abs/1509.09308, F(4x4, 3x3), in float32 throughout.
"""

import importlib.util
import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.crops.upscaling.ncnn_graph import Graph, rrdb_graph, srvgg_graph
from kd_convnext.errors import Finding, UpscalerError

WINOGRAD_SIDE = 4
"""Pixels of a square that is computed together: tiles that begin at multiples of it round as the whole crop does."""

_Pass = Callable[[Any, Callable[[Any], Pixels]], Pixels]

# float32 everywhere, and one variant of Winograd's algorithm for every size: the pixels depend on neither.
_OFF = (
    "use_vulkan_compute",
    "use_fp16_storage",
    "use_fp16_packed",
    "use_fp16_arithmetic",
    "use_bf16_storage",
    "use_bf16_packed",
    "use_int8_inference",
    "use_winograd23_convolution",
    "use_winograd63_convolution",
)


@lru_cache(maxsize=1)
def ncnn_installed() -> bool:
    """Returns whether the package ncnn is installed, without importing it."""
    return importlib.util.find_spec("ncnn") is not None


def ncnn_forward(descriptor: Any, state: dict[str, Any], threads: int = 1) -> Callable[[Pixels], Pixels]:
    """Builds the pass of a network.

    Args:
        descriptor: Of spandrel, for architecture, scale and form.
        state: Weights of an SRVGG network in the authors' names, float32.
        threads: Threads of a pass; the pixels do not depend on their number.

    Returns:
        The network on uint8 RGB [h, w, 3]; several threads may call it at once.

    Raises:
        UpscalerError: ncnn is not installed, or the network has a form that is not written for it.
    """
    compact = descriptor.architecture.id == "Compact"
    try:
        graph = srvgg_graph(state) if compact else rrdb_graph(descriptor.model.state_dict())
        run = _load(graph, threads)
    except ImportError as error:
        remedy = "Install kd-convnext[ncnn], or use --upscaler spandrel."
        finding = Finding("--upscaler ncnn", f"a package is missing ({error})", remedy)
        raise UpscalerError(finding) from error
    except (ValueError, KeyError) as error:
        what = f"this network cannot be written for ncnn ({error})"
        raise UpscalerError(Finding("--upscaler ncnn", what, "Use --upscaler spandrel.")) from error
    scale: int = descriptor.scale
    if compact:
        return lambda crop: _shuffled(run, crop, scale)
    fold: int = descriptor.model.hyperparameters["shuffle_factor"] or 1
    return lambda crop: run(_folded(_planes(crop), fold), _merged)


def _load(graph: Graph, threads: int) -> _Pass:
    """Hands a graph to ncnn.

    Returns:
        The pass: computes on float32 [c, h, w], which gives the GIL back, and gives the result to a function that makes
        pixels of it: it is ncnn's own memory and must not be kept.
    """
    import ncnn  # type: ignore[import-untyped,import-not-found,unused-ignore]

    net = ncnn.Net()
    for option in _OFF:
        setattr(net.opt, option, False)
    net.opt.num_threads = threads
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "weights.bin"
        file.write_bytes(graph.weights())
        if net.load_param_mem(graph.text()) or net.load_model(str(file)):
            raise ValueError("ncnn refuses it")

    def run(planes: Any, pixels_of: Callable[[Any], Pixels]) -> Pixels:
        extractor = net.create_extractor()
        # Pools of this pass alone: those of the net would keep the largest pass's memory for good.
        blobs, workspace = ncnn.PoolAllocator(), ncnn.PoolAllocator()
        extractor.set_blob_allocator(blobs)
        extractor.set_workspace_allocator(workspace)
        extractor.input(graph.input, ncnn.Mat(planes))
        failed, result = extractor.extract(graph.output)
        if failed:
            raise MemoryError("ncnn could not compute a pass")
        # The room of Winograd's transforms is larger than the result; it is given back before there are pixels too.
        workspace.clear()
        pixels = pixels_of(np.asarray(result))
        del result
        return pixels

    return run


def _planes(crop: Pixels) -> Any:
    """Returns float32 [3, h, w], 0 to 1."""
    return np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32) / np.float32(255)


def _levels(plane: Any) -> Any:
    """Rounds 0 to 1 to levels, uint8; what lies outside is clipped."""
    return cv2.multiply(plane, 255.0, dtype=cv2.CV_8U)  # type: ignore[call-overload]  # a scalar, in OpenCV's own words


def _merged(planes: Any) -> Pixels:
    """Rounds three planes of 0 to 1 to pixels."""
    pixels: Pixels = cv2.merge([_levels(plane) for plane in planes]).astype(np.uint8, copy=False)
    return pixels


def _shuffled(run: _Pass, crop: Pixels, scale: int) -> Pixels:
    """Runs SRVGG; sorts its channels into pixels and adds the crop, plane by plane: no enlarged float picture."""
    height, width = crop.shape[:2]
    planes = _planes(crop)

    def sorted_out(channels: Any) -> Pixels:
        found = channels.reshape(3, scale, scale, height, width)
        pixels = np.empty((height, scale, width, scale, 3), np.uint8)
        for channel in range(3):
            for row in range(scale):
                for column in range(scale):
                    plane = cv2.add(found[channel, row, column], planes[channel])
                    pixels[:, row, :, column, channel] = _levels(plane).reshape(height, width)
        return pixels.reshape(height * scale, width * scale, 3)

    return run(planes, sorted_out)


def _folded(planes: Any, factor: int) -> Any:
    """Folds squares of pixels into channels, as torch's ``pixel_unshuffle``."""
    if factor == 1:
        return planes
    channels, height, width = planes.shape
    parts = planes.reshape(channels, height // factor, factor, width // factor, factor)
    return np.ascontiguousarray(parts.transpose(0, 2, 4, 1, 3).reshape(-1, height // factor, width // factor))
