"""Measures what the gate stops of photographs that are altered as mistakes and other devices alter them."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import KDConvNeXtError
from kd_convnext.inference.prediction import Failure, Photograph
from kd_convnext.inference.predictor import Predictor
from kd_convnext.inference.run_data import CalibrationData, Rows

AT_MOST = 60
"""Photographs of each kind: a rate within 13 percentage points, in a time that is small beside the calibration's."""

Region = tuple[Pixels, Box | None]


@dataclass(frozen=True)
class Stopped:
    """What became of photographs of one kind.

    Attributes:
        kind: Which kind.
        photographs: How many were shown.
        stopped: How many of them the gate stopped.
    """

    kind: str
    photographs: int
    stopped: int

    @property
    def share(self) -> float:
        """Of them that was stopped, in 0..1."""
        return self.stopped / self.photographs


def measure_gate(predictor: Predictor, data: CalibrationData, rows: Rows) -> list[Stopped]:
    """Shows altered photographs to a calibrated network.

    Args:
        predictor: The network, with its calibration.
        data: Its photographs.
        rows: Those to alter; at most `AT_MOST` of them are, evenly taken.

    Returns:
        One entry for each of `KINDS`; those without a region to replace are left out.
    """
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), AT_MOST)).astype(int)] if len(rows) else rows
    found = (count_stopped(predictor, kind, altered(kind, data, chosen)) for kind in KINDS)
    return [each for each in found if each.photographs]


def count_stopped(predictor: Predictor, kind: str, photographs: Iterator[Photograph]) -> Stopped:
    """Counts photographs that the gate stops; those that cannot be read are left out.

    Args:
        predictor: The network, with its calibration.
        kind: What they are.
        photographs: Shown one after the other.
    """
    answers = predictor.predict_many(photographs)
    scores = [answer.gate_score or 0.0 for answer in answers if not isinstance(answer, Failure)]
    return Stopped(kind, len(scores), sum(score > 1 for score in scores))


def altered(kind: str, data: CalibrationData, rows: Rows) -> Iterator[Photograph]:
    """Alters photographs of a run.

    Args:
        kind: One of `KINDS`.
        data: The photographs.
        rows: Which.

    Yields:
        Each of them, altered, as far as it can be read. Photographs without a box have no region to replace.
    """
    for row in rows.tolist():
        box = data.manifest.box(row)
        if box is None and KINDS[kind] in (_whole, _corner):
            continue
        try:
            image = read_image(data.manifest.image_path(row))
        except KDConvNeXtError:  # its crop may still be in the cache, which is all that a calibration needs
            continue
        yield Photograph(*KINDS[kind](image, box, np.random.default_rng(row)))


def _blurred(image: Pixels, box: Box | None, rng: np.random.Generator) -> Region:
    return _pixels(cv2.GaussianBlur(image, (0, 0), 0.03 * max(image.shape[:2]))), box


def _out_of_focus(image: Pixels, box: Box | None, rng: np.random.Generator) -> Region:
    return _pixels(cv2.GaussianBlur(image, (0, 0), 0.01 * max(image.shape[:2]))), box


def _tinted(image: Pixels, box: Box | None, rng: np.random.Generator) -> Region:
    warmer = rng.choice([-0.2, 0.2])
    return _pixels(image * np.array([1 + warmer, 1, 1 - warmer])), box


def _photographed_again(image: Pixels, box: Box | None, rng: np.random.Generator) -> Region:
    """Two fifths of the resolution, another curve and cast, light from one side, noise, and a JPEG of low quality."""
    height, width = image.shape[:2]
    small = cv2.resize(image, (max(2 * width // 5, 1), max(2 * height // 5, 1)), interpolation=cv2.INTER_AREA)
    again = np.clip(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC) / 255, 0, 1)
    again = again ** rng.uniform(0.6, 0.8) * [1.05, 1, 0.85] * np.linspace(1, 0.75, width)[None, :, None]
    noisy = _pixels(255 * (again + rng.normal(0, 0.03, again.shape)))
    _, coded = cv2.imencode(".jpg", noisy[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 60])
    return _pixels(np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))[..., ::-1]), box


def _whole(image: Pixels, box: Box | None, rng: np.random.Generator) -> Region:
    return image, None


def _corner(image: Pixels, box: Box | None, rng: np.random.Generator) -> Region:
    """The corner of three tenths of the sides that has least of the region."""
    height, width = image.shape[:2]
    w, h = max(3 * width // 10, 1), max(3 * height // 10, 1)
    corners = [Box(x, y, w, h) for x in (0, width - w) for y in (0, height - h)]
    return image, min(corners, key=lambda corner: _common(corner, box)) if box else None


def _common(one: Box, other: Box) -> int:
    across = min(one.x + one.width, other.x + other.width) - max(one.x, other.x)
    down = min(one.y + one.height, other.y + other.height) - max(one.y, other.y)
    return max(across, 0) * max(down, 0)


def _pixels(values: Any) -> Pixels:
    return np.ascontiguousarray(np.clip(values, 0, 255).astype(np.uint8))


KINDS: Mapping[str, Callable[[Pixels, Box | None, np.random.Generator], Region]] = {
    "strongly blurred": _blurred,
    "out of focus": _out_of_focus,
    "other white balance": _tinted,
    "photographed again": _photographed_again,
    "whole frame, not the region": _whole,
    "a corner, not the region": _corner,
}
"""Alterations: of the pixels as a careless hand or another device makes them, or of the region that is named."""
