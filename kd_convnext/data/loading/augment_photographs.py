"""Augments photographs of specimens: turning, scale, illumination, white balance, sharpness, occlusion."""

from dataclasses import dataclass, fields
from typing import cast

import cv2
import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels
from kd_convnext.errors import ConfigError, Finding

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Weights of red, green and blue in luminance (ITU-R BT.601)."""


@dataclass(frozen=True)
class PhotographSpec:
    """Describes changes between two photographs of one specimen, beside flips, window and shift.

    Attributes:
        rotate: Largest turn to either side in degrees, 0..180.
        stretch: Sides change by a factor of up to ``exp(stretch)`` against each other, 0..1.
        brightness: Largest change of all values as a fraction of white, 0..1.
        contrast: Largest relative change of the distance to the mean, 0..1.
        saturation: Largest relative change of the distance to grey, 0..1.
        white_balance: Largest relative change of each channel by itself, 0..1.
        blur: Probability of an unsharp picture, 0..1.
        jpeg: Probability of a strong JPEG compression, 0..1.
        dropout: Probability of a grey rectangle over up to a third of each side, 0..1.
        scale: The crop grows or shrinks by a factor of up to ``exp(scale)``, 0..1.
    """

    rotate: float = 180.0
    stretch: float = 0.2
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.2
    white_balance: float = 0.06
    blur: float = 0.1
    jpeg: float = 0.1
    dropout: float = 0.0
    scale: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values that cannot work, all together."""
        findings = [
            Finding(f"augment.photograph.{name}", f"{value} is outside 0..{most}", "Use a value inside.")
            for name, value, most in (
                (field.name, getattr(self, field.name), 180 if field.name == "rotate" else 1) for field in fields(self)
            )
            if not 0 <= value <= most
        ]
        if findings:
            raise ConfigError(findings)


def photographed(crop: Pixels, spec: PhotographSpec, seed: int, *, reflect: bool = True) -> Pixels:
    """Draws another photograph of a crop.

    Args:
        crop: uint8 RGB [N, N, 3].
        spec: What may change, and how much.
        seed: Decides the draw.
        reflect: What a turn brings into view: the reflected crop, else black.

    Returns:
        uint8 RGB [N, N, 3].
    """
    # Not the stream of the flips and windows, which are drawn from the same seed.
    draw = np.random.default_rng((seed, 1))
    picture = _lit(_turned(crop, spec, draw, reflect), spec, draw)
    chances = draw.random(3)
    if chances[0] < spec.blur:
        sigma = float(draw.uniform(0.004, 0.015)) * crop.shape[0]
        picture = np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8)
    if chances[1] < spec.jpeg:
        quality = int(draw.integers(30, 80))
        _, code = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
        picture = cast(Pixels, np.ascontiguousarray(np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))[..., ::-1]))
    if chances[2] < spec.dropout:
        picture = _covered(picture, draw)
    return picture


def _turned(crop: Pixels, spec: PhotographSpec, draw: np.random.Generator, reflect: bool) -> Pixels:
    """Turns, stretches and scales about the middle, in one resampling."""
    angle = np.deg2rad(draw.uniform(-spec.rotate, spec.rotate))
    ratio = np.exp(draw.uniform(-spec.stretch, spec.stretch) / 2)
    # Drawn only where it is asked for: other views stay as they were.
    size = np.exp(draw.uniform(-spec.scale, spec.scale)) if spec.scale else 1.0
    if angle == 0 and ratio == 1 and size == 1:
        return crop
    side = crop.shape[0]
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) @ np.diag(
        [size * ratio, size / ratio]
    )
    middle = np.full(2, (side - 1) / 2)
    matrix = np.column_stack([turn, middle - turn @ middle])
    border = cv2.BORDER_REFLECT_101 if reflect else cv2.BORDER_CONSTANT
    view = cv2.warpAffine(crop, matrix, (side, side), flags=cv2.INTER_LINEAR, borderMode=border)
    return np.asarray(view, np.uint8)


def _lit(crop: Pixels, spec: PhotographSpec, draw: np.random.Generator) -> Pixels:
    """Changes white balance, saturation, contrast and brightness: one matrix and one offset for all pixels."""
    gains = 1 + draw.uniform(-1, 1, 3) * spec.white_balance
    saturation = 1 + draw.uniform(-1, 1) * spec.saturation
    contrast = 1 + draw.uniform(-1, 1) * spec.contrast
    offset = draw.uniform(-1, 1) * spec.brightness * 255
    mix = saturation * np.eye(3) + (1 - saturation) * np.tile(_GREY, (3, 1))
    matrix = contrast * np.diag(gains) @ mix
    shift = offset + (1 - contrast) * float(crop.mean())
    affine: npt.NDArray[np.float32] = np.column_stack([matrix, np.full(3, shift)]).astype(np.float32)
    return np.asarray(cv2.transform(crop, affine), np.uint8)


def _covered(picture: Pixels, draw: np.random.Generator) -> Pixels:
    side = picture.shape[0]
    height, width = (max(1, int(side * share)) for share in draw.uniform(0.1, 1 / 3, 2))
    top, left = int(draw.integers(side - height + 1)), int(draw.integers(side - width + 1))
    covered = picture.copy()
    covered[top : top + height, left : left + width] = 128
    return covered
