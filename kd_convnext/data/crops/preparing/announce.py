"""Announces the crops that will be made, the reason, and the expected time."""

from kd_convnext.common.console import duration
from kd_convnext.common.counting import counted
from kd_convnext.data.crops.cache.cache import CropCache, Survey
from kd_convnext.data.crops.preparing.estimate import crop_sizes, measure
from kd_convnext.data.crops.preparing.kept import kept_share
from kd_convnext.data.crops.resize import reduced_size
from kd_convnext.data.crops.upscaling.upscaler import NETWORKS
from kd_convnext.data.manifest.manifest import Manifest


def announcement(cache: CropCache, manifest: Manifest, survey: Survey) -> str | None:
    """Describes a filling that takes a network.

    Args:
        cache: The cache.
        manifest: The photographs.
        survey: What is there and what is missing.

    Returns:
        One sentence, or None where nothing is to be made or no network is needed.
    """
    rows = [region.row for photograph in survey.missing for region in photograph.regions]
    if not rows or cache.spec.upscaler not in NETWORKS:
        return None
    kept, seconds = kept_share(cache, survey)
    spec, name = cache.spec, cache.upscaler.identity
    form = f"store_size {spec.store_size}, resize {spec.resize}, roi_margin {spec.roi_margin:g}"
    number = counted(len(rows) + len(survey.found), "crop")
    what = f"{len(rows)} of {number} to make: {cache.folder} has none of them ({form})"
    if kept == 1:
        return f"{what}; about {duration(seconds * len(rows))}, from enlarged crops that are kept, without the network"
    sizes = [reduced_size(*size, spec.sr_max_side) for size in crop_sizes(manifest, rows, spec.roi_margin)]
    pixels = round((1 - kept) * sum(height * width for height, width in sizes))
    seconds, _ = measure(cache, survey, pixels, len(rows))
    how = f"{name.name} ({name.architecture}, x{name.scale})"
    some = f", {kept:.0%} of them from enlarged crops that are kept" if kept else ""
    return f"{what}; about {duration(seconds)} with {how}{some}"
