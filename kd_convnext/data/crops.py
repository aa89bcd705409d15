"""From a photograph and a box to the picture a classifier sees: crop, reduce, super-resolve, store size."""

import warnings
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

import cv2
import numpy as np

from kd_convnext.data.roi import Box, crop_roi, read_image
from kd_convnext.data.super_resolution import Pixels, Upscaler, UpscalerName, build_upscaler
from kd_convnext.errors import ConfigError, Finding, UpscalerError

Resize = Literal["stretch", "pad"]
UpscalerChoice = Literal["auto", UpscalerName]

SCHEMA_VERSION = 1
"""Raised whenever the same input would give other pixels; part of every key."""


@dataclass(frozen=True)
class CropSpec:
    """How a region of interest becomes a stored picture. Travels in checkpoints (`to_dict`).

    Attributes:
        roi_margin: Added on each side of the box, as a fraction of that side, clipped to the photograph.
        sr_max_side: Crops with a longer side, in pixels, are first reduced to it by area; None for never.
        store_size: Side of the stored square, in pixels; None keeps the enlarged crop as it is.
        resize: ``stretch`` to the square, as the paper does, or ``pad`` with black, keeping the proportions.
        upscaler: ``auto`` is ``spandrel`` where weights are given, else ``bicubic`` with a warning.
        sr_weights: Path of official Real-ESRGAN weights; not used by ``bicubic`` and ``none``.

    Raises:
        ConfigError: A value that cannot work; all of them together.
    """

    roi_margin: float = 0.0
    sr_max_side: int | None = 512
    store_size: int | None = 256
    resize: Resize = "stretch"
    upscaler: UpscalerChoice = "auto"
    sr_weights: str | None = None

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        findings = []
        if not 0 <= self.roi_margin <= 10:
            findings.append(("roi_margin", self.roi_margin, "Give a fraction of the box from 0 to 10."))
        for name, smallest in (("sr_max_side", 1), ("store_size", 1)):
            value = getattr(self, name)
            if value is not None and value < smallest:
                findings.append((name, value, "Give pixels from 1, or null."))
        for name, choices in (("resize", get_args(Resize)), ("upscaler", _UPSCALERS)):
            if getattr(self, name) not in choices:
                findings.append((name, getattr(self, name), f"Choose one of {', '.join(choices)}."))
        if findings:
            raise ConfigError(
                Finding(f"--{name}", f"{value!r} cannot work", remedy) for name, value, remedy in findings
            )

    def resolved(self) -> "CropSpec":
        """Replaces ``auto`` and checks that the weights are there.

        Returns:
            The same specification with a definite upscaler.

        Raises:
            UpscalerError: The upscaler needs weights and none are given, or there is no such file.
        """
        spec = self
        if self.upscaler == "auto":
            if self.sr_weights is None:
                warnings.warn(
                    "no Real-ESRGAN weights given: crops are enlarged by bicubic interpolation "
                    "(--sr_weights FILE super-resolves them, --upscaler bicubic silences this)",
                    stacklevel=2,
                )
            spec = replace(self, upscaler="bicubic" if self.sr_weights is None else "spandrel")
        if spec.upscaler in ("spandrel", "realesrgan"):
            remedy = "Give an official Real-ESRGAN file (.pth or .safetensors), or choose --upscaler bicubic."
            if spec.sr_weights is None:
                what = f"the upscaler {spec.upscaler!r} needs weights and none are given"
                raise UpscalerError(Finding("--sr_weights", what, remedy))
            if not Path(spec.sr_weights).expanduser().is_file():
                raise UpscalerError(Finding("--sr_weights", f"there is no file {spec.sr_weights}", remedy))
        return spec

    def build_upscaler(self, device: str = "cpu") -> Upscaler:
        """Returns the upscaler named here; the same one while the weights' file does not change.

        Args:
            device: Where a network runs, as torch names it.

        Raises:
            UpscalerError: The weights or the package are missing or not usable.
        """
        spec = self.resolved()
        if spec.sr_weights is None or spec.upscaler in ("bicubic", "none"):
            return _build_once(spec.upscaler, None, 0, device)
        path = Path(spec.sr_weights).expanduser().absolute()
        return _build_once(spec.upscaler, path, path.stat().st_mtime_ns, device)

    def identity(self) -> dict[str, Any]:
        """Names everything but the crop itself that decides the stored pixels.

        Returns:
            JSON types only: ``schema``, ``roi_margin``, ``sr_max_side``, ``store_size``, ``resize``,
            ``interpolation``, and ``upscaler`` with the fields of `UpscalerIdentity` (``name``,
            ``weights_sha256``, ``scale``, ...). No paths: equal identities give equal pixels anywhere.

        Raises:
            UpscalerError: The weights or the package are missing or not usable.
        """
        return {
            "schema": SCHEMA_VERSION,
            "roi_margin": float(self.roi_margin),
            "sr_max_side": self.sr_max_side,
            "store_size": self.store_size,
            "resize": self.resize,
            "interpolation": "area down, cubic up",
            "upscaler": asdict(self.build_upscaler().identity),
        }

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as JSON types, for checkpoints and records."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "CropSpec":
        """Reads what `to_dict` gave; fields that an older version did not have take their defaults.

        Args:
            values: Field names and values.

        Raises:
            ConfigError: A field of no version known here, or a value that cannot work.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            remedy = "It was written by a newer kd-convnext: update this one."
            raise ConfigError(Finding(name, "is no field of a crop specification", remedy) for name in unknown)
        return cls(**values)


_UPSCALERS = ("auto", *get_args(UpscalerName))


@lru_cache(maxsize=4)
def _build_once(name: UpscalerName, weights: Path | None, mtime_ns: int, device: str) -> Upscaler:
    return build_upscaler(name, weights, device=device)


def make_crop(image: Pixels | Path | str, box: Box | None, spec: CropSpec, upscaler: Upscaler) -> Pixels:
    """Prepares one region of interest, by the very steps of the cache.

    Args:
        image: The photograph, uint8 RGB [H, W, 3], or its path.
        box: Region of interest in its pixels; None for all of it.
        spec: How to crop, reduce and store.
        upscaler: The upscaler that ``spec`` names.

    Returns:
        uint8 RGB [S, S, 3] with S = ``store_size``, or [h * scale, w * scale, 3] where that is None.

    Raises:
        ManifestError: The photograph cannot be read or the box does not fit it.
    """
    photograph = image if isinstance(image, np.ndarray) else read_image(Path(image))
    return enlarge(crop_roi(photograph, box, spec.roi_margin), spec, upscaler)


def enlarge(crop: Pixels, spec: CropSpec, upscaler: Upscaler) -> Pixels:
    """Reduces a crop to ``sr_max_side`` where it is larger, super-resolves it, brings it to the stored size.

    Args:
        crop: uint8 RGB [h, w, 3].
        spec: How to reduce and store.
        upscaler: The upscaler that ``spec`` names.

    Returns:
        As `make_crop`.
    """
    enlarged = upscaler(resize_to(crop, *reduced_size(crop.shape[0], crop.shape[1], spec.sr_max_side)))
    size = spec.store_size
    if size is None:
        return enlarged
    if spec.resize == "stretch":
        return resize_to(enlarged, size, size)
    height, width = _fit(enlarged.shape[0], enlarged.shape[1], size)
    square = np.zeros((size, size, 3), np.uint8)
    top, left = (size - height) // 2, (size - width) // 2
    square[top : top + height, left : left + width] = resize_to(enlarged, height, width)
    return square


def reduced_size(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """Returns the (height, width) at which a crop enters super-resolution."""
    return (height, width) if max_side is None or max(height, width) <= max_side else _fit(height, width, max_side)


def resize_to(image: Pixels, height: int, width: int) -> Pixels:
    """Resizes by area along sides that shrink and by cubic interpolation along sides that grow.

    Args:
        image: uint8 [h, w, 3].
        height: Wanted height in pixels.
        width: Wanted width in pixels.

    Returns:
        uint8 [height, width, 3].
    """
    smaller = (min(image.shape[0], height), min(image.shape[1], width))
    if smaller != image.shape[:2]:
        image = np.asarray(cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA), np.uint8)
    if (height, width) != image.shape[:2]:
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    return image


def _fit(height: int, width: int, side: int) -> tuple[int, int]:
    """Returns the size of the same proportions whose longer side is ``side``."""
    longer = max(height, width)
    return max(1, round(height * side / longer)), max(1, round(width * side / longer))
