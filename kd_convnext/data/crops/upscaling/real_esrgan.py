"""Loads Real-ESRGAN networks from weight files, run by spandrel, by ncnn or by the authors' packages."""

import hashlib
import io
import pickle
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.files import read_bytes
from kd_convnext.common.reading import tensors_of
from kd_convnext.data.crops.upscaling.ncnn import WINOGRAD_SIDE, ncnn_forward
from kd_convnext.data.crops.upscaling.network import NetworkUpscaler
from kd_convnext.data.crops.upscaling.upscaler import PIXEL_BUDGET, Blend, SrPrecision, UpscalerIdentity, UpscalerName
from kd_convnext.errors import Finding, UpscalerError

# RRDB reaches about 350 px, too far to tile exactly within the budget; 64 px keeps seams small. Budget and
# padding are part of the identity, so equal keys still mean equal pixels.
_RRDB_TILE_PAD = 64
_REMEDY = "Give an official Real-ESRGAN file (.pth or .safetensors, SRVGG or RRDB)."


class _Weights(NamedTuple):
    """Tensors, all float32 and finite, and the hash of the very bytes they came from."""

    path: Path
    tensors: dict[str, Any]
    sha256: str


class Loaded(NamedTuple):
    """A network and what it was made of.

    Attributes:
        descriptor: Of spandrel: the torch network, its architecture and scale.
        state: Its tensors in the authors' names, float32.
        sha256: Of the weights' file.
        blend: What was mixed into the weights, None for nothing.
    """

    descriptor: Any
    state: dict[str, Any]
    sha256: str
    blend: Blend | None


def load_network(path: Path, weak: Path | None = None, strength: float = 1.0) -> Loaded:
    """Loads a network for the CPU.

    Args:
        path: Official weights.
        weak: Weights of weak denoising to blend with.
        strength: Share of ``path`` in the blend, 0 to 1.

    Raises:
        UpscalerError: A file cannot be used.
    """
    weights, blend = _load(path), None
    state = weights.tensors
    if weak is not None:
        other = _load(weak)
        state, blend = _blended(weights, other, strength), Blend(strength, other.sha256)
    return Loaded(_describe(path, state), state, weights.sha256, blend)


def build_network(
    name: UpscalerName,
    path: Path,
    device: str,
    weak: Path | None = None,
    strength: float = 1.0,
    precision: SrPrecision = "float32",
) -> NetworkUpscaler:
    """Builds an upscaler around a network.

    Args:
        name: ``spandrel``, ``ncnn`` or ``realesrgan``.
        path: Official weights.
        device: Where the network runs, as torch names it.
        weak: Weights of weak denoising to blend with.
        strength: Share of ``path`` in the blend, 0 to 1.
        precision: Arithmetic of ``spandrel``.

    Raises:
        UpscalerError: As `build_upscaler` says.
    """
    descriptor, state, sha256, blend = load_network(path, weak, strength)
    options = descriptor.model.hyperparameters
    compact = descriptor.architecture.id == "Compact"
    identity = UpscalerIdentity(
        name=name,
        architecture=descriptor.architecture.id,
        scale=descriptor.scale,
        weights_sha256=sha256,
        precision="fp32" if precision == "float32" else "bf16",
        pixel_budget=PIXEL_BUDGET,
        tile_pad=_tile_pad(name, options["num_conv"] + 2) if compact else _RRDB_TILE_PAD,
        blend=blend,
    )
    try:
        if name == "spandrel":
            forward = _spandrel_forward(descriptor.model, device, precision == "bfloat16")
        elif name == "ncnn":
            forward = _ncnn_forward(descriptor, state, device)
        else:
            forward = _reference_forward(path, state, descriptor, device)
    except (RuntimeError, AssertionError) as error:
        finding = Finding("--device", f"{device!r} cannot be used ({_line(error)})", "Use cpu.")
        raise UpscalerError(finding) from error
    multiple = 1 if compact else options["shuffle_factor"] or 1
    if device != "cpu":
        return NetworkUpscaler(identity, forward, multiple, in_flight=0)  # one pass fills a GPU
    # A pass of RRDB takes several times the memory of SRVGG, Winograd's algorithm more than twice: one at a time.
    greedy = not compact or name == "ncnn"
    return NetworkUpscaler(identity, forward, multiple, in_flight=PIXEL_BUDGET if greedy else 2 * PIXEL_BUDGET)


def _tile_pad(name: UpscalerName, reach: int) -> int:
    """Returns the context of a tile; for ncnn such that tiles begin where its squares do."""
    return reach if name != "ncnn" else -(-reach // WINOGRAD_SIDE) * WINOGRAD_SIDE


def _ncnn_forward(descriptor: Any, state: dict[str, Any], device: str) -> Callable[[Pixels], Pixels]:
    if device != "cpu":
        what = f"runs on the CPU, not on {device!r}"
        raise UpscalerError(Finding("--upscaler ncnn", what, "Use --upscaler spandrel, or --device cpu."))
    return ncnn_forward(descriptor, state)


def _line(error: BaseException) -> str:
    """Returns the first line of an error's text, or its type."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _load(path: Path) -> _Weights:
    """Loads tensors, and nothing but tensors."""
    import torch
    from safetensors.torch import load as load_safetensors
    from spandrel import canonicalize_state_dict  # type: ignore[import-untyped]

    try:
        content = read_bytes(path)
    except OSError as error:
        finding = Finding(str(path), f"the weights cannot be read ({error.strerror})", _REMEDY)
        raise UpscalerError(finding) from error
    try:
        # spandrel's own loader uses a pickle filter of its own; torch's is the one that is kept up.
        safe = path.suffix.lower() == ".safetensors"
        loaded = load_safetensors(content) if safe else tensors_of(io.BytesIO(content))
        state: dict[str, Any] = canonicalize_state_dict(loaded)
        if not state or not all(isinstance(value, torch.Tensor) for value in state.values()):
            raise TypeError("it holds no plain set of tensors")
    except Exception as error:  # the loaders raise many types for a file that is not theirs
        # torch's own text advises to load objects, which may run anything.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "it holds objects, which are never loaded, or is torn" if unsafe else _line(error)
        finding = Finding(str(path), f"is not a file of weights ({reason})", _REMEDY)
        raise UpscalerError(finding) from error
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        raise UpscalerError(Finding(str(path), "has weights that are not finite numbers", _REMEDY))
    tensors = {key: value.float() for key, value in state.items()}
    return _Weights(path, tensors, hashlib.sha256(content).hexdigest())


def _blended(weights: _Weights, weak: _Weights, strength: float) -> dict[str, Any]:
    """Interpolates two networks as the authors' inference script does (deep network interpolation)."""
    ours, theirs = ({key: value.shape for key, value in one.tensors.items()} for one in (weights, weak))
    if ours != theirs:
        what = f"is not of the same network as {weights.path}: the two cannot be blended"
        remedy = "Give the wdn file that belongs to the weights (general-x4v3 and general-wdn-x4v3)."
        raise UpscalerError(Finding(str(weak.path), what, remedy))
    return {key: strength * value + (1 - strength) * weak.tensors[key] for key, value in weights.tensors.items()}


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


def _spandrel_forward(model: Any, device: str, mixed: bool = False) -> Callable[[Pixels], Pixels]:
    import torch

    model = model.to(device, memory_format=torch.channels_last).eval()

    def forward(crop: Pixels) -> Pixels:
        # TF32 would move pixels between GPUs and CPUs by more than rounding.
        with torch.inference_mode(), torch.backends.cudnn.flags(allow_tf32=False):
            # A copy of [h, w, 3] seen as [1, 3, h, w] is channels_last already.
            images = torch.tensor(crop, device=device).permute(2, 0, 1).unsqueeze(0).float().div_(255)
            with torch.autocast(images.device.type, torch.bfloat16, enabled=mixed):
                enlarged = model(images)
            pixels = enlarged.float().clamp_(0, 1).mul_(255).round_().to(torch.uint8)
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
