"""Builds the upscaler that a specification names."""

from pathlib import Path

from kd_convnext.data.crops.upscaling.ncnn import ncnn_installed
from kd_convnext.data.crops.upscaling.upscaler import BicubicUpscaler, NoUpscaler, SrPrecision, Upscaler, UpscalerName
from kd_convnext.data.crops.upscaling.weights import is_rrdb, locate
from kd_convnext.errors import Finding, UpscalerError


def automatic_networks(weights: Path, device: str, precision: SrPrecision = "float32") -> tuple[UpscalerName, ...]:
    """Names what ``auto`` may run weights with, the first choice first.

    Args:
        weights: A file.
        device: Where the network runs, as torch names it.
        precision: Arithmetic of the network.

    Returns:
        ``spandrel``, and in float32 on a CPU with ncnn installed ``ncnn``: before it for SRVGG, behind it for RRDB,
        where it is no faster and takes more memory (``benchmarks/data/upscaler_memory.py``).
    """
    if device != "cpu" or precision != "float32" or not ncnn_installed():
        return ("spandrel",)
    return ("spandrel", "ncnn") if is_rrdb(weights) else ("ncnn", "spandrel")


def build_upscaler(
    name: UpscalerName,
    weights: Path | str | None,
    *,
    device: str = "cpu",
    weak: Path | str | None = None,
    strength: float = 1.0,
    precision: SrPrecision = "float32",
) -> Upscaler:
    """Builds an upscaler.

    Args:
        name: ``spandrel``; ``ncnn`` or ``realesrgan``, which need the extras of these names, ``bicubic`` or ``none``.
        weights: Official Real-ESRGAN weights, ``.pth`` (``params_ema`` or ``params``) or ``.safetensors``, or the name
            of a release; only tensors are ever loaded. Not used by ``bicubic`` and ``none``.
        device: Where a network runs, as torch names it.
        weak: Weights of the same network that denoise less, a file or a name, to blend with.
        strength: Denoising strength: share of ``weights`` in the blend, 0 to 1.
        precision: Arithmetic of the network; ``bfloat16`` is for ``spandrel`` alone.

    Returns:
        The upscaler, ready.

    Raises:
        UpscalerError: Weights missing, unreadable, holding anything but tensors, of another architecture, not
            RGB to RGB, or not finite; ``weak`` of another network; ``ncnn`` or ``realesrgan`` not installed; the
            device not usable.
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
    from kd_convnext.data.crops.upscaling.real_esrgan import build_network

    other = None if weak is None else locate(str(weak))
    return build_network(name, locate(str(weights)), device, other, strength, precision)
