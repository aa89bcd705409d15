"""Estimates time and disk space for filling a crop cache, measured on one crop."""

import time

import numpy as np

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.console import duration, megabytes, tell
from kd_convnext.data.crops.cache.cache import CropCache, Survey
from kd_convnext.data.crops.cache.entries import encode
from kd_convnext.data.crops.cache.prepared import PrepareSummary
from kd_convnext.data.crops.make import enlarge
from kd_convnext.data.crops.preparing.kept import kept_share
from kd_convnext.data.crops.resize import reduced_size, resize_to
from kd_convnext.data.manifest.boxes import crop_roi
from kd_convnext.data.manifest.images import read_image
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.errors import KDConvNeXtError

_TIMED_SIDE = 128  # pixels of the crop timed for an estimate: seconds even for RRDB


def estimate(cache: CropCache, manifest: Manifest) -> PrepareSummary:
    """Estimates the time and space of filling the cache from one small crop.

    Args:
        cache: The cache.
        manifest: The photographs.

    Returns:
        Nothing made; ``bytes`` and ``seconds`` are estimates for what is missing.
    """
    survey = cache.survey(manifest)
    rows = [region.row for photograph in survey.missing for region in photograph.regions]
    sizes = crop_sizes(manifest, rows, cache.spec.roi_margin)
    reduced = [reduced_size(height, width, cache.spec.sr_max_side) for height, width in sizes]
    kept, _ = kept_share(cache, survey) if cache.enlarged.folder else (0.0, 0.0)
    pixels = round((1 - kept) * sum(height * width for height, width in reduced))
    seconds, size = measure(cache, survey, pixels, len(sizes))
    tell(f"dry run: {len(survey.found)} found, {len(sizes)} to make")
    if kept:
        tell(f"about {kept:.0%} of them from enlarged crops that are kept, without the network")
    if sizes:
        fewer = sum(before != after for before, after in zip(sizes, reduced, strict=True))
        if fewer:
            tell(f"{fewer} of them are first reduced to {cache.spec.sr_max_side} px (sr_max_side)")
        tell(
            f"about {duration(seconds)} and {megabytes(size)} "
            f"(estimated from one crop of at most {_TIMED_SIDE} px, made and timed just now)"
        )
    return PrepareSummary(0, len(survey.found), 0, size, seconds)


def crop_sizes(manifest: Manifest, rows: list[int], margin: float) -> list[tuple[int, int]]:
    """Finds the sizes of crops from the manifest alone.

    Args:
        manifest: The photographs.
        rows: Positions in it.
        margin: Added on each side of a box, as a fraction of that side.

    Returns:
        Height and width of each, in pixels.
    """
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


def measure(cache: CropCache, survey: Survey, pixels: int, crops: int) -> tuple[float, int]:
    """Estimates what crops take, from one of them made and timed.

    Args:
        cache: The cache.
        survey: What is missing.
        pixels: Pixels that enter the network.
        crops: Crops to store.

    Returns:
        Seconds, and bytes with those of enlarged crops that are kept.
    """
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
    # Beside the stored form the enlarged one is kept, at its own size.
    enlarged = len(encode(cache.upscaler(crop), "0" * 64)) * share if cache.enlarged.folder else 0.0
    return reading * len(survey.missing) + upscaling * share + storing * stored, round(size * stored + enlarged)


def _first_crop(cache: CropCache, survey: Survey) -> Pixels:
    """Returns the first missing crop that can be read; a gray one where none can."""
    for photograph in survey.missing:
        try:
            return crop_roi(read_image(photograph.path), photograph.regions[0].box, cache.spec.roi_margin)
        except KDConvNeXtError:
            continue  # the real run reports it
    return np.full((_TIMED_SIDE, _TIMED_SIDE, 3), 127, np.uint8)
