"""Reads photographs and cuts their regions, several at a time."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.crops.cache.index import Stamp
from kd_convnext.data.crops.cache.prepared import crop_key
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.manifest.boxes import Box, crop_roi
from kd_convnext.data.manifest.images import read_image
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.errors import Finding, KDConvNeXtError


class RegionRow(NamedTuple):
    """A region of interest and the row of the manifest it comes from (0-based position)."""

    row: int
    box: Box | None


class PhotographRegions(NamedTuple):
    """A photograph and the regions wanted of it."""

    path: Path
    regions: tuple[RegionRow, ...]


class Cut(NamedTuple):
    """One region cut out: its row and box, the key of its entry, the crop uint8 RGB [h, w, 3]."""

    region: RegionRow
    key: str
    crop: Pixels


class Reading(NamedTuple):
    """Crops of one photograph, its stamp before it was read, and the regions that failed."""

    stamp: Stamp
    cuts: tuple[Cut, ...]
    failed: tuple[tuple[RegionRow, Finding], ...]


def read_regions(photograph: PhotographRegions, spec: CropSpec, salt: str) -> Reading:
    """Decodes a photograph and cuts its regions out.

    Args:
        photograph: Its path, and the regions wanted.
        spec: How crops are made.
        salt: The configuration's part of each key.

    Returns:
        The crops with their keys, and what could not be cut, with the reason.
    """
    path, regions = photograph
    try:
        stamp = Stamp.of(path)  # before reading: a photograph replaced meanwhile must not pass for this one
        image = read_image(path)
    except (KDConvNeXtError, OSError) as error:
        return Reading(Stamp(str(path), 0, 0), (), tuple((region, _reason(error)) for region in regions))
    cuts, failed = [], []
    for region in regions:
        try:
            crop = crop_roi(image, region.box, spec.roi_margin)
        except KDConvNeXtError as error:
            failed.append((region, _reason(error)))
        else:
            cuts.append(Cut(region, crop_key(salt, crop), crop))
    return Reading(stamp, tuple(cuts), tuple(failed))


def photographs_of(manifest: Manifest, rows: npt.NDArray[Any] | None) -> tuple[PhotographRegions, ...]:
    """Groups rows by photograph, in the order of the manifest."""
    wanted: dict[Path, list[RegionRow]] = {}
    for row in range(len(manifest.table)) if rows is None else np.unique(rows).tolist():
        wanted.setdefault(manifest.image_path(row), []).append(RegionRow(row, manifest.box(row)))
    return tuple(PhotographRegions(path, tuple(regions)) for path, regions in wanted.items())


def _reason(error: KDConvNeXtError | OSError) -> Finding:
    if isinstance(error, KDConvNeXtError):
        return error.findings[0]
    reason = f"the photograph cannot be read ({error.strerror or error})"
    return Finding("", reason, "Restore it, or leave such rows out with --on_error skip.")
