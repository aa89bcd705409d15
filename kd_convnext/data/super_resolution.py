"""Super-resolution of one crop, behind one small interface.

Real-ESRGAN (Wang et al. 2021, https://arxiv.org/abs/2107.10833) by maintained code (``spandrel``) or by its
authors' packages (``realesrgan``), bicubic interpolation as the control, or nothing at all.
"""

import hashlib
import io
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from kd_convnext.errors import Finding, UpscalerError

Pixels = npt.NDArray[np.uint8]
UpscalerName = Literal["spandrel", "realesrgan", "bicubic", "none"]

PIXEL_BUDGET = 512 * 512
"""Largest crop, in pixels, that a network sees in one pass; it bounds the memory. Larger crops are tiled."""

# RRDB reaches about 350 px, too far to tile exactly within the budget; 64 px keeps seams small. Budget and
# padding are part of the identity, so equal keys still mean equal pixels.
_RRDB_TILE_PAD = 64
_REMEDY = "Give an official Real-ESRGAN file (.pth or .safetensors, SRVGG or RRDB)."


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
    """

    name: UpscalerName
    architecture: str
    scale: int
    weights_sha256: str | None = None
    precision: str = "fp32"
    pixel_budget: int = 0
    tile_pad: int = 0


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


@dataclass(frozen=True)
class NoUpscaler:
    """Leaves the crop as it is (scale 1)."""

    identity: UpscalerIdentity = UpscalerIdentity("none", "none", 1)

    def __call__(self, crop: Pixels) -> Pixels:
        """Returns the crop itself."""
        return crop


@dataclass(frozen=True)
class BicubicUpscaler:
    """Bicubic interpolation by 4: what super-resolution has to beat."""

    identity: UpscalerIdentity = UpscalerIdentity("bicubic", "bicubic", 4)

    def __call__(self, crop: Pixels) -> Pixels:
        """Enlarges the crop; see `Upscaler`."""
        scale = self.identity.scale
        size = (crop.shape[1] * scale, crop.shape[0] * scale)
        return np.asarray(cv2.resize(crop, size, interpolation=cv2.INTER_CUBIC), np.uint8)


class NetworkUpscaler:
    """A network that enlarges one crop at a time, within a pixel budget.

    One crop a pass: batching does not pay on a CPU and would make pixels depend on the batch. One pass at a
    time, whichever thread asks: a pass already uses all of torch's threads.
    """

    def __init__(self, identity: UpscalerIdentity, forward: Callable[[Pixels], Pixels], multiple: int = 1) -> None:
        """Wraps a network.

        Args:
            identity: What decides the pixels, with the budget and the padding of tiles.
            forward: The network on uint8 RGB [h, w, 3] whose sides are multiples of ``multiple``.
            multiple: Sides that the network accepts; others are reflected up to it and cut afterwards.
        """
        self.identity = identity
        self._forward = forward
        self._multiple = multiple
        self._one_at_a_time = threading.Lock()

    def __call__(self, crop: Pixels) -> Pixels:
        """Enlarges the crop; see `Upscaler`. An error in a tile is an error."""
        with self._one_at_a_time:
            height, width = crop.shape[:2]
            if height * width <= self.identity.pixel_budget:
                return self._whole(crop)
            scale = self.identity.scale
            result = np.empty((height * scale, width * scale, 3), np.uint8)
            for top, left, tile, inner in self._tiles(crop):
                pixels = self._whole(tile)[inner]
                result[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
            return result

    def _tiles(self, crop: Pixels) -> Iterator[tuple[int, int, Pixels, tuple[slice, slice]]]:
        """Yields (top, left of the result, padded tile, part of the enlarged tile to keep)."""
        scale, pad = self.identity.scale, self.identity.tile_pad
        step = int(self.identity.pixel_budget**0.5) - 2 * pad
        height, width = crop.shape[:2]
        for y in range(0, height, step):
            for x in range(0, width, step):
                y0, x0 = max(y - pad, 0), max(x - pad, 0)
                y1, x1 = min(y + step, height), min(x + step, width)
                inner = (
                    slice((y - y0) * scale, (y1 - y0) * scale),
                    slice((x - x0) * scale, (x1 - x0) * scale),
                )
                yield y * scale, x * scale, crop[y0 : y1 + pad, x0 : x1 + pad], inner

    def _whole(self, crop: Pixels) -> Pixels:
        height, width = crop.shape[:2]
        below, right = -height % self._multiple, -width % self._multiple
        if below or right:
            # cv2 reflects crops of any size, torch's reflection refuses those smaller than the padding.
            crop = np.asarray(cv2.copyMakeBorder(crop, 0, below, 0, right, cv2.BORDER_REFLECT_101), np.uint8)
        scale = self.identity.scale
        return self._forward(crop)[: height * scale, : width * scale]


def build_upscaler(name: UpscalerName, weights: Path | str | None, *, device: str = "cpu") -> Upscaler:
    """Builds an upscaler.

    Args:
        name: ``spandrel``, ``realesrgan`` (needs the extra of that name), ``bicubic`` or ``none``.
        weights: Official Real-ESRGAN weights, ``.pth`` (``params_ema`` or ``params``) or ``.safetensors``;
            only tensors are ever loaded. Not used by ``bicubic`` and ``none``.
        device: Where a network runs, as torch names it.

    Returns:
        The upscaler, ready.

    Raises:
        UpscalerError: Weights missing, unreadable, holding anything but tensors, of another architecture, not
            RGB to RGB, or not finite; ``realesrgan`` not installed; the device not usable.
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
                f"{_REMEDY} Or choose --upscaler bicubic.",
            )
        )
    return _build_network(name, Path(weights).expanduser(), device)


def _build_network(name: UpscalerName, path: Path, device: str) -> NetworkUpscaler:
    state, digest = _load_state(path)
    descriptor = _describe(path, state)
    options = descriptor.model.hyperparameters
    compact = descriptor.architecture.id == "Compact"
    identity = UpscalerIdentity(
        name=name,
        architecture=descriptor.architecture.id,
        scale=descriptor.scale,
        weights_sha256=digest,
        pixel_budget=PIXEL_BUDGET,
        tile_pad=options["num_conv"] + 2 if compact else _RRDB_TILE_PAD,
    )
    try:
        if name == "spandrel":
            forward = _spandrel_forward(descriptor.model, device)
        else:
            forward = _reference_forward(path, state, descriptor, device)
    except (RuntimeError, AssertionError) as error:
        finding = Finding("--device", f"{device!r} cannot be used ({_line(error)})", "Use cpu.")
        raise UpscalerError(finding) from error
    return NetworkUpscaler(identity, forward, 1 if compact else options["shuffle_factor"] or 1)


def _line(error: BaseException) -> str:
    """Returns the first line of an error's text, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _load_state(path: Path) -> tuple[dict[str, Any], str]:
    """Loads tensors, and nothing but tensors, and the hash of the very bytes they came from."""
    import torch
    from safetensors.torch import load as load_safetensors
    from spandrel import canonicalize_state_dict  # type: ignore[import-untyped]

    try:
        content = path.read_bytes()
    except OSError as error:
        finding = Finding(str(path), f"the weights cannot be read ({error.strerror})", _REMEDY)
        raise UpscalerError(finding) from error
    try:
        if path.suffix.lower() == ".safetensors":
            loaded = load_safetensors(content)
        else:
            # spandrel's own loader uses a pickle filter of its own; torch's is the one that is kept up.
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        state: dict[str, Any] = canonicalize_state_dict(loaded)
        if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError("it holds no plain set of tensors")
    except Exception as error:  # the loaders raise many types for a file that is not theirs
        finding = Finding(str(path), f"is not a file of weights ({_line(error)})", _REMEDY)
        raise UpscalerError(finding) from error
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise UpscalerError(Finding(str(path), "has weights that are not finite numbers", _REMEDY))
    return {key: value.float() for key, value in state.items()}, hashlib.sha256(content).hexdigest()


def _describe(path: Path, state: dict[str, Any]) -> Any:
    """Finds architecture, scale and network for the weights (a spandrel ``ImageModelDescriptor``)."""
    from spandrel import ModelLoader

    try:
        descriptor = ModelLoader("cpu").load_from_state_dict(dict(state))
    except Exception as error:  # spandrel raises many types for weights that no architecture fits
        finding = Finding(str(path), f"holds weights of no known architecture ({_line(error)})", _REMEDY)
        raise UpscalerError(finding) from error
    channels = (descriptor.input_channels, descriptor.output_channels)
    if descriptor.architecture.id not in ("Compact", "ESRGAN"):
        raise UpscalerError(Finding(str(path), f"holds weights of {descriptor.architecture.name}", _REMEDY))
    if channels != (3, 3):
        what = f"maps {channels[0]} channels to {channels[1]}, not RGB to RGB"
        raise UpscalerError(Finding(str(path), what, _REMEDY))
    return descriptor


def _spandrel_forward(model: Any, device: str) -> Callable[[Pixels], Pixels]:
    import torch

    model = model.to(device, memory_format=torch.channels_last).eval()

    def forward(crop: Pixels) -> Pixels:
        # TF32 would move pixels between GPUs and CPUs by more than rounding.
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            # A copy of [h, w, 3] seen as [1, 3, h, w] is channels_last already.
            images = torch.tensor(crop, device=device).permute(2, 0, 1).unsqueeze(0).float().div_(255)
            pixels = model(images).clamp_(0, 1).mul_(255).round_().to(torch.uint8)
            return np.ascontiguousarray(pixels[0].permute(1, 2, 0).cpu().numpy())

    return forward


def _reference_forward(path: Path, state: dict[str, Any], descriptor: Any, device: str) -> Callable[[Pixels], Pixels]:
    import torch

    options = descriptor.model.hyperparameters
    with _reference_importable():
        try:
            from basicsr.archs.rrdbnet_arch import RRDBNet
            from realesrgan import RealESRGANer
            from realesrgan.archs.srvgg_arch import SRVGGNetCompact
        except ImportError as error:
            remedy = "Install kd-convnext[realesrgan], or use --upscaler spandrel: the same pixels."
            finding = Finding("--upscaler realesrgan", f"a package is missing ({error})", remedy)
            raise UpscalerError(finding) from error
    if descriptor.architecture.id == "Compact":
        names = ("num_feat", "num_conv", "upscale")
        network = SRVGGNetCompact(3, 3, **{name: options[name] for name in names})
    else:
        network = RRDBNet(
            3, 3, scale=descriptor.scale, num_feat=options["num_filters"], num_block=options["num_blocks"]
        )
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        what = "is of a form that the reference code does not know"
        finding = Finding(str(path), what, "Use --upscaler spandrel, which does.")
        raise UpscalerError(finding) from error
    with tempfile.TemporaryDirectory() as folder:
        # RealESRGANer unpickles its file as it likes: it gets one of ours with the tensors already checked.
        checked = str(Path(folder) / "weights.pth")
        torch.save({"params": state}, checked)
        # tile: it swallows errors of tiles. pre_pad: 10 px reflected right and below change the borders.
        engine = RealESRGANer(
            descriptor.scale,
            checked,
            model=network,
            tile=0,
            pre_pad=0,
            half=False,
            device=torch.device(device),
        )

    def forward(crop: Pixels) -> Pixels:
        with torch.backends.cudnn.flags(allow_tf32=False):
            bgr, _ = engine.enhance(np.ascontiguousarray(crop[..., ::-1]))
        return np.ascontiguousarray(bgr[..., ::-1])

    return forward


@contextmanager
def _reference_importable() -> Iterator[None]:
    """Lets basicsr import a torchvision module that is gone since torchvision 0.17."""
    from torchvision.transforms import functional

    name = "torchvision.transforms.functional_tensor"
    stub = ModuleType(name)
    stub.__dict__["rgb_to_grayscale"] = functional.rgb_to_grayscale
    added = sys.modules.setdefault(name, stub) is stub
    try:
        yield
    finally:
        if added:
            del sys.modules[name]
