"""Finds out how many missing crops can be made from enlarged ones that are kept, by looking at some."""

import time

import numpy as np

from kd_convnext.data.crops.cache.cache import CropCache, Survey
from kd_convnext.data.manifest.boxes import crop_roi
from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import KDConvNeXtError

_LOOKED_AT = 12  # photographs, spread evenly, of which it is looked up whether their enlarged crops are kept


def kept_share(cache: CropCache, survey: Survey) -> tuple[float, float]:
    """Estimates which share of the missing crops needs no network.

    Args:
        cache: The cache.
        survey: What is missing.

    Returns:
        The share whose enlarged form is kept, 0 to 1, and seconds to make one crop from it; both of a sample.
    """
    held, seconds = [], []
    chosen = np.linspace(0, len(survey.missing) - 1, min(_LOOKED_AT, len(survey.missing))).astype(int)
    for position in np.unique(chosen).tolist():
        path, regions = survey.missing[position]
        start = time.perf_counter()
        try:
            crop = crop_roi(read_image(path), regions[0].box, cache.spec.roi_margin)
        except KDConvNeXtError:
            continue  # the filling reports it
        held.append(cache.enlarged.holds(crop))
        if held[-1]:
            cache.enlarged.make(crop, cache.spec, cache.upscaler)
            seconds.append(time.perf_counter() - start)
    return float(np.mean(held)) if held else 0.0, float(np.median(seconds or [0.0]))
