"""Describes how a photograph and a box become the picture a classifier sees: crop, super-resolve, store size."""

import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args

from kd_convnext.data.crops.upscaling.build import automatic_networks, build_upscaler
from kd_convnext.data.crops.upscaling.upscaler import NETWORKS, PIXEL_BUDGET, SrPrecision, Upscaler, UpscalerName
from kd_convnext.data.crops.upscaling.weights import locate, weak_denoising
from kd_convnext.errors import ConfigError, Finding, UpscalerError

Resize = Literal["stretch", "pad"]
UpscalerChoice = Literal["auto", UpscalerName]

SCHEMA_VERSION = 1
"""Raised whenever the same input would give other pixels; part of every key."""

LARGEST_SIDE = 8192
"""Of a stored square, in pixels: one of them takes 200 MB."""


@dataclass(frozen=True)
class CropSpec:
    """Specifies how a region of interest is cropped, upscaled, resized and stored. Travels in checkpoints (`to_dict`).

    Attributes:
        roi_margin: Added on each side of the box, as a fraction of that side, clipped to the photograph.
        sr_max_side: Crops with a longer side, in pixels, are first reduced to it by area; None for never.
        store_size: Side of the stored square, in pixels; None keeps the enlarged crop as it is.
        resize: ``stretch`` to the square, as the paper does, or ``pad`` with black, keeping the proportions.
        upscaler: ``auto`` is a network where weights are given, for SRVGG on a CPU ``ncnn`` where it is
            installed, otherwise ``spandrel``; else ``bicubic`` with a warning.
        sr_weights: Official Real-ESRGAN weights, a path or the name of a release; not used by ``bicubic`` and ``none``.
        sr_denoise: Denoising strength, 0 to 1: the share of ``sr_weights`` in a blend with weights that denoise less;
            None and 1 for no blend.
        sr_wdn_weights: Weights that denoise less, a path or a name; by default what belongs to ``sr_weights``:
            ``general-wdn-x4v3`` where that says ``general-x4v3``, in the same folder.
        sr_consistent: Correct each enlarged crop until, reduced again, it equals the crop to one level: what the
            network smoothed away or painted over at the crop's own resolution is undone.
        sr_precision: Arithmetic of the network: ``float32``, or with ``spandrel`` and ``auto`` ``bfloat16``. A CPU with
            AMX computes in that several times as fast; the pixels differ by a few levels of 255.

    Raises:
        ConfigError: A value that cannot work; all of them together.

    Examples:
        >>> spec = CropSpec(upscaler="bicubic", store_size=128)
        >>> spec.build_upscaler().identity.scale
        4
    """

    roi_margin: float = 0.0
    sr_max_side: int | None = 512
    store_size: int | None = 256
    resize: Resize = "stretch"
    upscaler: UpscalerChoice = "auto"
    sr_weights: str | None = None
    sr_denoise: float | None = None
    sr_wdn_weights: str | None = None
    sr_consistent: bool = False
    sr_precision: SrPrecision = "float32"

    def __post_init__(self) -> None:
        """Refuses values that cannot work."""
        findings: list[tuple[str, object, str]] = []
        if not 0 <= self.roi_margin <= 10:
            findings.append(("roi_margin", self.roi_margin, "Give a fraction of the box from 0 to 10."))
        if self.sr_denoise is not None and not 0 <= self.sr_denoise <= 1:
            findings.append(("sr_denoise", self.sr_denoise, "Give a strength from 0 to 1, or null."))
        if self.sr_max_side is not None and self.sr_max_side < 1:
            findings.append(("sr_max_side", self.sr_max_side, "Give pixels from 1, or null."))
        if self.store_size is not None and not 1 <= self.store_size <= LARGEST_SIDE:
            findings.append(("store_size", self.store_size, f"Give pixels from 1 to {LARGEST_SIDE}, or null."))
        named = {"resize": get_args(Resize), "upscaler": _UPSCALERS, "sr_precision": get_args(SrPrecision)}
        for name, choices in named.items():
            if getattr(self, name) not in choices:
                findings.append((name, getattr(self, name), f"Choose one of {', '.join(choices)}."))
        if self.sr_consistent and (self.sr_max_side is None or self.sr_max_side**2 > PIXEL_BUDGET):
            findings.append(("sr_consistent", True, f"Give sr_max_side {round(PIXEL_BUDGET**0.5)} or less with it."))
        if self.sr_precision == "bfloat16" and self.upscaler in ("ncnn", "realesrgan"):
            findings.append(("sr_precision", "bfloat16", "Leave it out, or choose --upscaler spandrel."))
        if findings:
            raise ConfigError(
                Finding(f"crops.{name}", f"{value!r} cannot work", remedy) for name, value, remedy in findings
            )

    def with_upscaler(self, upscaler: UpscalerChoice | None, sr_weights: str | None) -> "CropSpec":
        """Returns the specification with another upscaler or other weights.

        Args:
            upscaler: None keeps what there is.
            sr_weights: None keeps what there is.
        """
        changes: dict[str, Any] = {"upscaler": upscaler, "sr_weights": sr_weights}
        return replace(self, **{name: value for name, value in changes.items() if value is not None})

    def resolved(self, device: str = "cpu") -> "CropSpec":
        """Replaces ``auto`` and checks that the weights are there.

        Args:
            device: Where a network would run, as torch names it.

        Returns:
            The same specification with a definite upscaler, and no blend where it would change nothing.

        Raises:
            UpscalerError: The upscaler needs weights and none are given, or files are missing: all of them.
        """
        spec = replace(self, sr_denoise=None if self.sr_denoise == 1 else self.sr_denoise)
        if self.upscaler == "auto":
            if self.sr_weights is None:
                warnings.warn(
                    "no Real-ESRGAN weights given: crops are enlarged by bicubic interpolation "
                    "(--sr_weights FILE super-resolves them, --upscaler bicubic silences this)",
                    stacklevel=2,
                )
            spec = replace(spec, upscaler="bicubic" if self.sr_weights is None else "spandrel")
        if spec.upscaler in NETWORKS:
            findings: list[Finding] = []
            files = []
            for weights in spec.weights():
                try:
                    files.append(locate(weights))
                except UpscalerError as error:
                    findings += error.findings
            if findings:
                raise UpscalerError(findings)
            if self.upscaler == "auto":
                spec = replace(spec, upscaler=automatic_networks(files[0], device, self.sr_precision)[0])
        return spec

    def idle(self) -> list[str]:
        """Names the options of super-resolution that were given and are not used: sentences, empty where all are."""
        given = {"sr_weights": self.sr_weights, "sr_denoise": self.sr_denoise, "sr_wdn_weights": self.sr_wdn_weights}
        given["sr_precision"] = None if self.sr_precision == "float32" else self.sr_precision
        named = [name for name, value in given.items() if value is not None]
        if self.upscaler in NETWORKS or (self.upscaler == "auto" and self.sr_weights is not None):
            blended = self.sr_wdn_weights is None or self.sr_denoise not in (None, 1)
            return [] if blended else ["sr_wdn_weights has no effect without sr_denoise below 1"]
        how = "without sr_weights" if self.upscaler == "auto" else f"beside upscaler {self.upscaler}"
        return [f"{', '.join(named)} {'has' if len(named) == 1 else 'have'} no effect {how}"] if named else []

    def weights(self) -> tuple[str, ...]:
        """Returns the weights that a network needs, paths or names: ``sr_weights``, and those it is blended with.

        Raises:
            UpscalerError: None are given, or it is not known what to blend them with.
        """
        if self.sr_weights is None:
            what = f"the upscaler {self.upscaler!r} needs weights and none are given"
            remedy = "Give an official Real-ESRGAN file (.pth or .safetensors), or choose --upscaler bicubic."
            raise UpscalerError(Finding("--sr_weights", what, remedy))
        if self.sr_denoise is None or self.sr_denoise == 1:
            return (self.sr_weights,)
        weak = self.sr_wdn_weights or weak_denoising(self.sr_weights)
        if weak is None:
            what = f"{self.sr_weights} has no known counterpart that denoises less"
            remedy = "Name its file with --crops.sr_wdn_weights, or leave it out."
            raise UpscalerError(Finding("--crops.sr_denoise", what, remedy))
        return self.sr_weights, weak

    def build_upscaler(self, device: str = "cpu") -> Upscaler:
        """Returns the upscaler named here; the same one while the weights' files do not change.

        Args:
            device: Where a network runs, as torch names it.

        Raises:
            UpscalerError: The weights or the package are missing or not usable.
        """
        spec = self.resolved(device)
        if spec.upscaler not in NETWORKS:
            return _build_once(spec.upscaler, (), (), None, device, spec.sr_precision)
        files = tuple(locate(weights) for weights in spec.weights())
        changed = tuple(file.stat().st_mtime_ns for file in files)
        return _build_once(spec.upscaler, files, changed, spec.sr_denoise, device, spec.sr_precision)

    def identity(self) -> dict[str, Any]:
        """Names everything but the crop itself that decides the stored pixels.

        Returns:
            JSON types only: ``schema``, ``roi_margin``, ``sr_max_side``, ``store_size``, ``resize``,
            ``interpolation``, and ``upscaler`` with the fields of `UpscalerIdentity` (``name``,
            ``weights_sha256``, ``scale``, ...). No paths: equal identities give equal pixels anywhere.

        Raises:
            UpscalerError: The weights or the package are missing or not usable.
        """
        streamed = self.store_size is not None and (self.sr_max_side is None or self.sr_max_side**2 > PIXEL_BUDGET)
        return {
            "schema": SCHEMA_VERSION,
            "roi_margin": float(self.roi_margin),
            "sr_max_side": self.sr_max_side,
            "store_size": self.store_size,
            "resize": self.resize,
            "interpolation": "area down, cubic up" + (", by pieces above the budget" if streamed else ""),
            "upscaler": self.build_upscaler().identity.to_dict(),
            **({"consistent": True} if self.sr_consistent else {}),
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
        try:
            return cls(**values)
        except TypeError as error:
            what = f"holds a value of another kind ({error})"
            raise ConfigError(Finding("crop specification", what, "It was changed since it was written.")) from error


def comparable(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Returns an identity in which ``ncnn`` and ``spandrel`` are one.

    They run the same network and differ by one level in one of 25,000 values: two keys in a cache, but no other crops
    to a classifier. Without it a classifier trained on one machine could not be judged on another.

    Args:
        identity: See `CropSpec.identity`.
    """
    upscaler = dict(identity.get("upscaler") or {})
    if upscaler.get("name") in ("ncnn", "spandrel"):
        upscaler.pop("tile_pad", None)
        upscaler["name"] = "spandrel"
    return {**identity, "upscaler": upscaler}


_UPSCALERS = ("auto", *get_args(UpscalerName))


@lru_cache(maxsize=4)
def _build_once(
    name: UpscalerName,
    files: tuple[Path, ...],
    mtimes_ns: tuple[int, ...],
    strength: float | None,
    device: str,
    precision: SrPrecision,
) -> Upscaler:
    weights, weak = (*files, None, None)[:2]
    share = 1.0 if strength is None else strength
    return build_upscaler(name, weights, device=device, weak=weak, strength=share, precision=precision)
