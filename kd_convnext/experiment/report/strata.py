"""Divides tested photographs into thirds by size and sharpness of their regions, for tables of subgroups."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.crops.resize import reduced_size, resize_to
from kd_convnext.data.manifest.boxes import Box, crop_roi
from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import ConfigError, Finding, KDConvNeXtError
from kd_convnext.experiment.report.results import Arm

SIZE, SHARPNESS = "size", "sharpness"
"""Names that ``--by`` takes beside the columns of a manifest."""

_SIDE = 128  # longer side at which sharpness is measured, so that it does not depend on the camera's pixels
_THIRDS = ("lower third", "middle third", "upper third")


def sides(answers: pd.DataFrame) -> npt.NDArray[np.float64]:
    """Returns the side of a square of each region's area, in pixels, float64 [N]; NaN for a whole photograph."""
    area = answers["width"].to_numpy(np.float64) * answers["height"].to_numpy(np.float64)
    known = (answers["width"].to_numpy() > 0) & (answers["height"].to_numpy() > 0)
    return np.where(known, np.sqrt(np.where(known, area, 0.0)), np.nan)


def sharpness_of(crop: Pixels) -> float:
    """Measures sharpness as the variance of the Laplacian (Pech-Pacheco et al. 2000) of the grey crop.

    Args:
        crop: uint8 RGB [h, w, 3]; a larger one is first reduced to 128 px by area.

    Returns:
        The variance, in squared levels of 255.
    """
    small = resize_to(crop, *reduced_size(crop.shape[0], crop.shape[1], _SIDE))
    return float(cv2.Laplacian(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def sharpnesses(arm: Arm) -> npt.NDArray[np.float64]:
    """Measures the regions of an arm's answers in their photographs, float64 [N].

    Raises:
        ConfigError: Photographs are not there: all of them.
    """
    known: dict[tuple[str, int, int, int, int], float] = {}
    findings, values = [], []
    roots = {result.record.repeat: _root(result.config) for result in arm.results}
    row: Any
    for row in arm.answers.itertuples(index=False):
        box = (int(row.x), int(row.y), int(row.width), int(row.height))
        path = roots[row.repeat] / str(row.image)
        key = (str(path), *box)
        if key not in known:
            try:
                region = None if box[2] < 1 else Box(*box)
                known[key] = sharpness_of(crop_roi(read_image(path), region, 0.0))
            except KDConvNeXtError as error:
                known[key] = np.nan
                findings += [Finding("--by sharpness", one.what, one.remedy) for one in error.findings]
        values.append(known[key])
    if findings:
        raise ConfigError(findings)
    return np.array(values)


def thirds(values: npt.NDArray[np.float64], unit: str) -> "pd.Series[str]":
    """Names the third that each value lies in, with its limits; empty where it is not known or all are equal.

    Args:
        values: float64 [N].
        unit: After the limits, such as ``px``; may be empty.
    """
    given = values[np.isfinite(values)]
    edges = np.quantile(given, (1 / 3, 2 / 3)) if len(given) else np.zeros(2)
    if not len(given) or edges[0] >= edges[1]:
        return pd.Series([""] * len(values), dtype=str)
    place = np.digitize(values, edges, right=True)
    low, high = (f"{edge:,.0f}" if edge >= 100 else f"{edge:.3g}" for edge in edges)
    limits = (f"up to {low}", f"to {high}", f"above {high}")
    names = [f"{third} ({f'{limit} {unit}'.strip()})" for third, limit in zip(_THIRDS, limits, strict=True)]
    return pd.Series([names[where] if np.isfinite(one) else "" for where, one in zip(place, values, strict=True)])


def _root(config: dict[str, object] | None) -> Path:
    data = (config or {}).get("data")
    manifest = Path(str(data.get("manifest", "") if isinstance(data, dict) else ""))
    return manifest if manifest.is_dir() else manifest.parent
