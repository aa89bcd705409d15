"""The tool ``prepare``: from a manifest to a filled cache, or to what that would cost."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from kd_convnext.data.cache import CropCache, OnError, PrepareSummary, Survey, default_cache_dir
from kd_convnext.data.crops import CropSpec, Resize, UpscalerChoice, enlarge, reduced_size, resize_to
from kd_convnext.data.entries import encode
from kd_convnext.data.manifest import Manifest, read_manifest
from kd_convnext.data.roi import crop_roi, read_image
from kd_convnext.data.super_resolution import Pixels
from kd_convnext.errors import Finding, KDConvNeXtError

_TIMED_SIDE = 128  # pixels of the crop timed for an estimate: seconds even for RRDB


def prepare(
    manifest: str,
    cache_dir: str | None = None,
    upscaler: UpscalerChoice = "auto",
    sr_weights: str | None = None,
    sr_max_side: int | None = 512,
    store_size: int | None = 256,
    resize: Resize = "stretch",
    roi_margin: float = 0.0,
    classes: Sequence[str] | None = None,
    on_error: OnError = "raise",
    device: str = "cpu",
    verify: bool = False,
    dry_run: bool = False,
) -> PrepareSummary:
    """Crops, super-resolves and stores the regions of interest of a manifest: those that are missing.

    Args:
        manifest: CSV file, or a folder with one folder per class.
        cache_dir: Where crops are kept; $KD_CONVNEXT_CACHE or ~/.cache/kd-convnext by default.
        upscaler: auto is spandrel where weights are given, else bicubic.
        sr_weights: Official Real-ESRGAN weights (.pth or .safetensors).
        sr_max_side: Crops with a longer side, in pixels, are first reduced to it; null for never.
        store_size: Side of the stored square in pixels; null keeps the enlarged crop.
        resize: stretch to the square as the paper does, or pad with black.
        roi_margin: Added on each side of the box, as a fraction of that side.
        classes: Class names in the order of the model's outputs, where the default order is not wanted.
        on_error: raise reports unreadable photographs as an error; skip leaves them out and lists them.
        device: Where a network runs, as torch names it.
        verify: Reads all photographs and entries again instead of trusting the index.
        dry_run: Only says how many crops there are to make, and about what time and disk they take.

    Returns:
        What was done; in a dry run nothing is made, `bytes` and `seconds` are estimates for what is missing.

    Raises:
        KDConvNeXtError: Manifest, weights, photographs or folder are not usable: all findings.
    """
    spec = CropSpec(
        roi_margin=roi_margin,
        sr_max_side=sr_max_side,
        store_size=store_size,
        resize=resize,
        upscaler=upscaler,
        sr_weights=sr_weights,
    )
    table = read_manifest(manifest, classes=classes, on_error=on_error)
    cache = CropCache(Path(cache_dir).expanduser() if cache_dir else default_cache_dir(), spec, device)
    _announce(cache, table)
    return _estimate(cache, table) if dry_run else _fill(cache, table, on_error, verify)


def _announce(cache: CropCache, manifest: Manifest) -> None:
    name = cache.upscaler.identity
    print(f"{len(manifest)} crops, upscaler {name.name} ({name.architecture}, x{name.scale}), {cache.folder}")
    _list_left_out("photographs of the manifest", manifest.skipped)


def _fill(cache: CropCache, manifest: Manifest, on_error: OnError, verify: bool) -> PrepareSummary:
    prepared = cache.fill(manifest, on_error=on_error, verify=verify)
    _list_left_out("crops", tuple(prepared.failed.values()))
    done = prepared.summary
    print(
        f"{done.made} made, {done.found} found, {done.failed} failed; "
        f"{_megabytes(done.bytes)} in {_duration(done.seconds)}"
    )
    return done


def _list_left_out(what: str, findings: Sequence[Finding]) -> None:
    if findings:
        print(f"{len(findings)} {what} left out:", file=sys.stderr)
        for finding in findings:
            print(f"  - {finding}", file=sys.stderr)


def _estimate(cache: CropCache, manifest: Manifest) -> PrepareSummary:
    """Times one small crop and multiplies."""
    survey = cache.survey(manifest)
    rows = [region.row for photograph in survey.missing for region in photograph.regions]
    sizes = _crop_sizes(manifest, rows, cache.spec.roi_margin)
    reduced = [reduced_size(height, width, cache.spec.sr_max_side) for height, width in sizes]
    pixels = sum(height * width for height, width in reduced)
    seconds, size = _measure(cache, survey, pixels, len(sizes))
    print(f"dry run: {len(survey.found)} found, {len(sizes)} to make")
    if sizes:
        fewer = sum(before != after for before, after in zip(sizes, reduced, strict=True))
        print(f"{fewer} of them are first reduced to {cache.spec.sr_max_side} px (sr_max_side)")
        print(
            f"about {_duration(seconds)} and {_megabytes(size)} "
            f"(estimated from one crop of at most {_TIMED_SIDE} px, made and timed just now)"
        )
    return PrepareSummary(0, len(survey.found), 0, size, seconds)


def _crop_sizes(manifest: Manifest, rows: list[int], margin: float) -> list[tuple[int, int]]:
    """Returns (height, width) of crops, from the manifest alone."""
    photographs = manifest.table.loc[rows, ["image_height", "image_width"]].to_numpy(int).tolist()
    sizes = []
    for row, (height, width) in zip(rows, photographs, strict=True):
        box = manifest.box(row)
        if box is not None:
            dx, dy = round(margin * box.width), round(margin * box.height)
            height = min(box.y + box.height + dy, height) - max(box.y - dy, 0)
            width = min(box.x + box.width + dx, width) - max(box.x - dx, 0)
        sizes.append((height, width))
    return sizes


def _measure(cache: CropCache, survey: Survey, pixels: int, crops: int) -> tuple[float, int]:
    """Returns estimated (seconds, bytes) for so many network pixels and crops."""
    if not crops:
        return 0.0, 0
    start = time.perf_counter()
    crop = _first_crop(cache, survey)
    reading = time.perf_counter() - start
    crop = resize_to(crop, *reduced_size(crop.shape[0], crop.shape[1], _TIMED_SIDE))
    cache.upscaler(crop)  # the first pass also sets the network up
    start = time.perf_counter()
    cache.upscaler(crop)
    upscaling = time.perf_counter() - start
    start = time.perf_counter()
    size = len(encode(enlarge(crop, cache.spec, cache.upscaler), "0" * 64))
    storing = max(0.0, time.perf_counter() - start - upscaling)
    share = pixels / (crop.shape[0] * crop.shape[1])
    stored = crops if cache.spec.store_size else share
    return reading * len(survey.missing) + upscaling * share + storing * stored, round(size * stored)


def _first_crop(cache: CropCache, survey: Survey) -> Pixels:
    """Returns the first missing crop that can be read; a gray one where none can."""
    for photograph in survey.missing:
        try:
            return crop_roi(read_image(photograph.path), photograph.regions[0].box, cache.spec.roi_margin)
        except KDConvNeXtError:
            continue  # the real run reports it
    return np.full((_TIMED_SIDE, _TIMED_SIDE, 3), 127, np.uint8)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
