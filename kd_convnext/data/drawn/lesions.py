"""Draws a lung lesion and photographs of it: the pictures behind :mod:`kd_convnext.data.drawn.specimens`.

What tells two lesions apart is their :class:`Structure` (growth pattern, border, core, necrosis). Colour, light and
camera are drawn from one distribution for all lesions, and the tumour's brightness is equalised, so that colour
statistics say next to nothing about the structure; unless a lesion is given a tint.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Field = npt.NDArray[np.float32]
"""A picture or a map of one, [H, W] or [H, W, 3], mostly 0..1."""

CANVAS = 256
"""Side in pixels of the square on which a lesion is drawn before it is photographed."""

BACKGROUNDS = ((0.16, 0.42, 0.55), (0.20, 0.46, 0.36), (0.62, 0.64, 0.66), (0.80, 0.80, 0.78), (0.50, 0.40, 0.30))
"""Surgical cloth in blue and green, steel, white paper and cork (RGB)."""


@dataclass(frozen=True)
class Structure:
    """Specifies the textures a lesion is drawn with.

    Attributes:
        glandular: Share of the tumour with ring-shaped glands, 0..1.
        solid: Share of the tumour that is solid, 0..1. What is left grows lepidic (in wavy parallel walls).
        lobes: Depth of the border's lobes, 0 (round) to 1.
        spicules: Number of thin rays that leave the border.
        core: Radius of a solid core inside the tumour, as a share of the tumour's radius; 0 for none.
        necrosis: Number of necrotic spots.
        tint: Factors on the tumour's red, green and blue, beside the colour that every lesion draws at random.
    """

    glandular: float = 0.0
    solid: float = 0.0
    lobes: float = 0.0
    spicules: int = 0
    core: float = 0.0
    necrosis: int = 0
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Lesion:
    """A drawn lesion, seen from above in even light.

    Attributes:
        surface: Colour of the tissue slab with the tumour in it, [CANVAS, CANVAS, 3], RGB 0..1.
        slab: Coverage of the slab, [CANVAS, CANVAS], 0..1.
        tumour: Coverage of the tumour, [CANVAS, CANVAS], 0..1.
    """

    surface: Field
    slab: Field
    tumour: Field


@dataclass(frozen=True)
class DrawnPhotograph:
    """One photograph of a lesion.

    Attributes:
        image: Pixels, uint8 [H, W, 3], RGB.
        tumour: Pixels that show the tumour, bool [H, W].
    """

    image: npt.NDArray[np.uint8]
    tumour: npt.NDArray[np.bool_]


def draw_lesion(rng: np.random.Generator, structure: Structure) -> Lesion:
    """Draws a lesion with the given structure; everything else about it is drawn at random.

    Args:
        rng: Source of every random choice.
        structure: What the tumour is made of.

    Returns:
        The lesion on a square of :data:`CANVAS` pixels.
    """
    radius = rng.uniform(0.22, 0.28) * CANVAS
    rho, theta = _polar(rng.uniform(-0.04, 0.04, 2) * CANVAS)
    tumour = _coverage(rho, theta, radius * _border(rng, structure))
    pattern = _equalised(_pattern(rng, structure, rho, theta, radius), tumour)
    rho_slab, theta_slab = _polar(np.zeros(2))
    slab = _coverage(rho_slab, theta_slab, 0.45 * CANVAS * _border(rng, Structure(lobes=0.5)))
    surface = _parenchyma(rng)
    pale = rng.uniform(0.42, 0.64)
    colour = pale * np.array([1.0, rng.uniform(0.74, 0.84), rng.uniform(0.70, 0.80)]) * np.array(structure.tint)
    contrast = rng.uniform(0.8, 1.6) * rng.uniform(0.96, 1.04, 3)
    inside = colour * (1 + (pattern[..., None] - 0.5) * contrast)
    surface = surface + (inside.astype(np.float32) - surface) * tumour[..., None]
    return Lesion(surface=surface, slab=slab, tumour=tumour)


def photograph(rng: np.random.Generator, lesion: Lesion, width: int, height: int) -> DrawnPhotograph:
    """Takes a photograph from a random angle, in random light, with a random camera.

    Args:
        rng: Source of every random choice.
        lesion: The lesion to photograph.
        width: Width of the photograph in pixels.
        height: Height of the photograph in pixels.

    Returns:
        The photograph, before JPEG compression.
    """
    view, size = _view(rng, width, height), (width, height)
    surface = cv2.warpPerspective(lesion.surface, view, size, borderMode=cv2.BORDER_REPLICATE)
    slab = _as_field(cv2.warpPerspective(lesion.slab, view, size))
    tumour = cv2.warpPerspective(lesion.tumour, view, size)
    scene = _background(rng, width, height)
    scene = _under(scene, _shadow(rng, slab))
    scene += cv2.multiply(surface - scene, cv2.merge([slab] * 3))
    scene = _under(scene, _light(rng, width, height))
    _glare(rng, scene, slab)
    return DrawnPhotograph(image=_camera(rng, scene), tumour=tumour > 0.5)


def smooth_noise(rng: np.random.Generator, cells: float, size: int = CANVAS) -> Field:
    """Random field of zero mean and unit variance whose features are about ``size / cells`` pixels wide.

    Args:
        rng: Source of the noise.
        cells: Independent cells along a side.
        size: Side of the field in pixels.

    Returns:
        Field [size, size].
    """
    count = max(4, round(cells) + 3)
    coarse = rng.standard_normal((count, count), dtype=np.float32)
    field = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)
    return _as_field((field - field.mean()) / (field.std() + 1e-6))


def _as_field(values: Any) -> Field:
    return np.asarray(values, dtype=np.float32)


def _polar(centre: npt.NDArray[np.float64]) -> tuple[Field, Field]:
    """Distance in pixels and angle in radians (-pi..pi) from the canvas' middle moved by ``centre`` (x, y)."""
    axis = np.arange(CANVAS, dtype=np.float32) - CANVAS / 2
    x, y = np.meshgrid(axis - np.float32(centre[0]), axis - np.float32(centre[1]))
    return _as_field(np.hypot(x, y)), _as_field(np.arctan2(y, x))


def _border(rng: np.random.Generator, structure: Structure) -> Field:
    """Radius of the border in units of the tumour's radius, at 1,024 angles from -pi to pi."""
    angle = np.linspace(-np.pi, np.pi, 1024, endpoint=False)
    radius = 1 + 0.06 * np.cos(2 * angle + rng.uniform(0, 2 * np.pi))
    for wave in (3, 4, 5, 6):
        depth = rng.uniform(0.01, 0.02) + structure.lobes * rng.uniform(0.02, 0.08)
        radius += depth * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    turn = rng.uniform(0, 2 * np.pi)
    for ray in range(structure.spicules):
        at = turn + 2 * np.pi * (ray + rng.uniform(-0.3, 0.3)) / structure.spicules
        away = np.angle(np.exp(1j * (angle - at)))
        radius += rng.uniform(0.14, 0.34) * np.exp(-np.abs(away) / rng.uniform(0.05, 0.10))
    return _as_field(radius)


def _coverage(rho: Field, theta: Field, border: Field) -> Field:
    """1 inside the border, 0 outside, with a soft edge of about three pixels."""
    at = ((theta + np.pi) / (2 * np.pi) * len(border)).astype(np.int64) % len(border)
    return _as_field(np.clip((border[at] - rho) / 3 + 0.5, 0, 1))


def _pattern(rng: np.random.Generator, structure: Structure, rho: Field, theta: Field, radius: float) -> Field:
    """Brightness pattern of the tumour before equalising: growth patterns as patches, core and necrosis on top."""
    # The tumour spans about two radii: periods are shares of the radius, so that size says nothing.
    lepidic = _walls(rng, radius * rng.uniform(0.40, 0.55))
    glands = _glands(rng, radius * rng.uniform(0.58, 0.76))
    solid = _as_field(0.7 * smooth_noise(rng, CANVAS / (radius * rng.uniform(0.18, 0.26))))
    patches = smooth_noise(rng, CANVAS / (radius * rng.uniform(0.7, 1.0)))
    inside = rho < radius
    low, high = np.quantile(patches[inside], [1 - structure.solid - structure.glandular, 1 - structure.solid])
    pattern = np.where(patches < low, lepidic, np.where(patches < high, glands, solid))
    if structure.core:
        pattern = _with_disc(rng, pattern, solid, rho, theta, radius, structure.core)
    for _ in range(structure.necrosis):
        at, turn = rng.uniform(0.1, 0.7) * radius, rng.uniform(0, 2 * np.pi)
        x, y = rho * np.cos(theta) - at * np.cos(turn), rho * np.sin(theta) - at * np.sin(turn)
        spot = np.clip((radius * rng.uniform(0.12, 0.20) - np.hypot(x, y)) / 3 + 0.5, 0, 1)
        pattern = pattern + (-2.5 - pattern) * spot
    return _as_field(pattern)


def _with_disc(
    rng: np.random.Generator, pattern: Field, solid: Field, rho: Field, theta: Field, radius: float, core: float
) -> Field:
    """Puts a solid, irregular core somewhere near the tumour's middle."""
    at, turn = rng.uniform(0, 0.35) * radius, rng.uniform(0, 2 * np.pi)
    x, y = rho * np.cos(theta) - at * np.cos(turn), rho * np.sin(theta) - at * np.sin(turn)
    border = core * radius * _border(rng, Structure(lobes=1.0))
    disc = _coverage(_as_field(np.hypot(x, y)), _as_field(np.arctan2(y, x)), border)
    return _as_field(pattern + (0.5 * solid - pattern) * disc)


def _walls(rng: np.random.Generator, period: float) -> Field:
    """Lepidic growth: wavy, roughly parallel walls."""
    turn = rng.uniform(0, np.pi)
    axis = np.arange(CANVAS, dtype=np.float32)
    along = np.add.outer(np.sin(turn) * axis, np.cos(turn) * axis)
    wave = 2 * np.pi * along / period + rng.uniform(1.5, 3.5) * smooth_noise(rng, 6)
    return _as_field(1.3 * np.cos(wave))


def _glands(rng: np.random.Generator, spacing: float) -> Field:
    """Acinar growth: rings on a jittered grid."""
    nodes = np.arange(0, CANVAS, spacing)
    x, y = np.meshgrid(nodes, nodes)
    x[1::2] += spacing / 2
    points = np.stack([x, y], axis=-1).reshape(-1, 2) + rng.uniform(-0.18, 0.18, (x.size, 2)) * spacing
    columns, rows = np.clip(points.round().astype(np.int64), 0, CANVAS - 1).T
    seeds = np.ones((CANVAS, CANVAS), np.uint8)
    seeds[rows, columns] = 0
    distance, nearest = cv2.distanceTransformWithLabels(
        seeds, cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    ring = (spacing * rng.uniform(0.24, 0.38, int(nearest.max()) + 1))[nearest]
    return _as_field(3 * np.exp(-(((distance - ring) / (0.13 * spacing)) ** 2)) - 1.2)


def _equalised(pattern: Field, tumour: Field) -> Field:
    """Replaces values by their rank inside the tumour, 0..1: all tumours then share one histogram."""
    inside = tumour > 0.5
    values = pattern[inside]
    ranks = np.empty(len(values), np.float32)
    ranks[np.argsort(values)] = np.linspace(0, 1, len(values), dtype=np.float32)
    equal = np.full_like(pattern, 0.5)
    equal[inside] = ranks
    return equal


def _parenchyma(rng: np.random.Generator) -> Field:
    """The lung around the tumour: spongy tissue with vessels and specks of carbon."""
    red = rng.uniform(0.38, 0.66)
    colour = red * np.array([1.0, rng.uniform(0.62, 0.88), rng.uniform(0.56, 0.84)], dtype=np.float32)
    sponge = 0.6 * smooth_noise(rng, rng.uniform(40, 70)) + 0.5 * smooth_noise(rng, 8)
    surface = np.ascontiguousarray(colour * (1 + rng.uniform(0.08, 0.18) * sponge)[..., None], dtype=np.float32)
    for _ in range(int(rng.integers(4, 14))):
        x, y = (int(v) for v in rng.integers(20, CANVAS - 20, 2))
        size = int(rng.integers(2, 6))
        cv2.circle(surface, (x, y), size, (0.78 * colour + 0.2).tolist(), -1, cv2.LINE_AA)
        cv2.circle(surface, (x, y), max(1, size - 2), (0.35 * colour).tolist(), -1, cv2.LINE_AA)
    return surface


def _view(rng: np.random.Generator, width: int, height: int) -> npt.NDArray[np.float64]:
    """Homography from the canvas to the photograph: rotation, scale, shift and tilt."""
    half = CANVAS / 2
    corners = np.array([[-half, -half], [half, -half], [half, half], [-half, half]])
    turn, scale = rng.uniform(0, 2 * np.pi), rng.uniform(0.85, 1.1) * min(width, height) / CANVAS
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    seen = scale * corners @ rotation.T * (1 + rng.uniform(-0.09, 0.09, (4, 1)))
    seen = seen * [1, rng.uniform(0.85, 1.0)] + [width / 2, height / 2]
    seen = seen + rng.uniform(-0.06, 0.06, 2) * [width, height]
    return np.asarray(cv2.getPerspectiveTransform(_as_field(corners + half), _as_field(seen)), dtype=np.float64)


def _under(scene: Field, light: Field) -> Field:
    """Multiplies a scene by a light given in few pixels."""
    size = scene.shape[1], scene.shape[0]
    return _as_field(cv2.multiply(scene, cv2.resize(light, size, interpolation=cv2.INTER_LINEAR)))


def _background(rng: np.random.Generator, width: int, height: int) -> Field:
    """Cloth with its folds and weave, or a brushed steel tray."""
    colour = np.array(BACKGROUNDS[int(rng.integers(len(BACKGROUNDS)))]) * rng.uniform(0.75, 1.2)
    folds = colour * (1 + 0.06 * smooth_noise(rng, 4, 16))[..., None]
    grain = 1 + 0.03 * rng.standard_normal((height, 1 if rng.random() < 0.4 else width // 2), dtype=np.float32)
    weave = cv2.resize(grain, (width, height), interpolation=cv2.INTER_LINEAR)
    return _under(_as_field(cv2.merge([weave] * 3)), _as_field(folds))


def _shadow(rng: np.random.Generator, slab: Field) -> Field:
    """What the slab leaves of the light around it, in an eighth of the pixels."""
    small = cv2.resize(slab, None, fx=1 / 8, fy=1 / 8, interpolation=cv2.INTER_AREA)
    drop = np.array([[1, 0, rng.uniform(-0.8, 0.8)], [0, 1, rng.uniform(-0.8, 0.8)]])
    moved = cv2.warpAffine(small, drop, (small.shape[1], small.shape[0]))
    soft = 1 - rng.uniform(0.3, 0.6) * cv2.GaussianBlur(moved, (0, 0), rng.uniform(0.4, 0.9))
    return _as_field(cv2.merge([soft] * 3))


def _light(rng: np.random.Generator, width: int, height: int) -> Field:
    """Exposure, white balance and the fall-off of a lamp that stands to one side, in an eighth of the pixels."""
    turn, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.25)
    x, y = np.linspace(-1, 1, max(2, width // 8)), np.linspace(-1, 1, max(2, height // 8))
    lamp = 1 + slope * np.add.outer(np.sin(turn) * y, np.cos(turn) * x)
    lamp *= 1 - rng.uniform(0, 0.2) * np.add.outer(y**2, x**2)
    balance = rng.uniform(0.85, 1.15) * rng.uniform(0.92, 1.08, 3)
    return _as_field(lamp[..., None] * balance)


def _glare(rng: np.random.Generator, scene: Field, slab: Field) -> None:
    """Adds the lamp's reflections on wet tissue, in place."""
    height, width = slab.shape
    for _ in range(int(rng.integers(0, 7))):
        x, y = int(rng.integers(width)), int(rng.integers(height))
        axes = (int(rng.integers(2, 8)), int(rng.integers(1, 4)))
        if slab[y, x] > 0.5:
            cv2.ellipse(scene, (x, y), axes, rng.uniform(0, 180), 0, 360, (0.95, 0.95, 0.95), -1, cv2.LINE_AA)


def _camera(rng: np.random.Generator, scene: Field) -> npt.NDArray[np.uint8]:
    """Blur, tone curve and sensor noise."""
    sharp = cv2.GaussianBlur(cv2.convertScaleAbs(scene, alpha=255), (0, 0), rng.uniform(0.4, 1.0))
    tone = 255 * np.linspace(0, 1, 256) ** rng.uniform(0.8, 1.25)
    noise = rng.standard_normal(scene.shape, dtype=np.float32)
    toned = cv2.LUT(sharp, tone.astype(np.float32))
    return np.asarray(cv2.convertScaleAbs(cv2.scaleAdd(noise, rng.uniform(2, 7), toned).clip(0)), dtype=np.uint8)
