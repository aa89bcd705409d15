"""Draws synthetic specimen photographs with a manifest, for the demo, the notebooks and the tests.

No photograph of a patient is in them, and nothing measured on them says anything about patients.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import track

from kd_convnext.common.files import atomic_write, write_finding
from kd_convnext.common.machine import available_cores
from kd_convnext.data.drawn.lesions import DrawnPhotograph, Structure, draw_lesion, photograph
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.errors import ConfigError, Finding

DEMO_LESIONS: Mapping[str, int] = {"Grade 1": 24, "Grade 2": 192, "Grade 3": 48, "AIS": 32, "MIA": 88}
"""Lesions per class by default: 1 to 8 between the rarest and the commonest, in the order of the paper's counts."""

WIDTH, HEIGHT = 320, 240
"""Pixels of a photograph."""

NO_TINT = (1.0, 1.0, 1.0)
"""A tumour of the colour that every lesion draws at random."""

BOX_SLACK = 0.08
"""A box leaves up to this share of the tumour's side free around it, as boxes drawn by hand do."""


class Drawn(NamedTuple):
    """One photograph: its JPEG bytes and the box around its tumour."""

    jpeg: bytes
    box: Box


def class_structure(rng: np.random.Generator, label: str) -> Structure:
    """Draws the structure of a lesion of one class; classes overlap, as growth patterns do.

    Args:
        rng: Source of every random choice.
        label: One of the paper's five classes.

    Returns:
        AIS: lepidic throughout, smooth border. MIA: lepidic with a small solid core. Grade 1: mostly lepidic with
        glands, lobed. Grade 2: mostly glandular. Grade 3: solid in large part, spiculated, often necrotic.
    """
    lobes = rng.uniform(0, 0.6)
    if label == "AIS":
        return Structure(lobes=0.5 * lobes)
    if label == "MIA":
        return Structure(lobes=lobes, core=rng.uniform(0.40, 0.60))
    if label == "Grade 1":
        return Structure(glandular=rng.uniform(0.25, 0.50), lobes=0.4 + lobes)
    if label == "Grade 2":
        glandular = rng.uniform(0.70, 1.0)
        return Structure(
            glandular=glandular, solid=rng.uniform(0, 1 - glandular), lobes=lobes, spicules=int(rng.integers(0, 5))
        )
    solid = rng.uniform(0.60, 1.0)
    spicules, necrosis = int(rng.integers(4, 12)), int(rng.integers(0, 4))
    return Structure(
        glandular=rng.uniform(0.5, 1) * (1 - solid), solid=solid, lobes=lobes, spicules=spicules, necrosis=necrosis
    )


def draw_photographs(rng: np.random.Generator, structure: Structure, count: int) -> list[Drawn]:
    """Draws one lesion and photographs it from several angles.

    Args:
        rng: Source of every random choice.
        structure: What the lesion is made of.
        count: Number of photographs.
    """
    lesion = draw_lesion(rng, structure)
    return [_taken(rng, photograph(rng, lesion, WIDTH, HEIGHT)) for _ in range(count)]


def draw_specimens(
    out: Path,
    *,
    seed: int,
    lesions_per_class: Mapping[str, int] = DEMO_LESIONS,
    photos_per_lesion: tuple[int, int] = (2, 3),
    tints: Mapping[str, tuple[float, float, float]] | None = None,
    progress: bool = True,
) -> Path:
    """Draws a set of photographs with a manifest.

    Args:
        out: Folder for ``manifest.csv`` and ``images/``; made if missing, files of the same names are replaced.
        seed: Decides everything: equal seeds draw equal bytes. Lesions of different seeds have different names.
        lesions_per_class: How many lesions of which of the paper's classes.
        photos_per_lesion: Fewest and most photographs of a lesion.
        tints: Factors on red, green and blue of the tumours of a class; by default colour says nothing about it.
        progress: Show a progress bar on a terminal.

    Returns:
        The manifest: ``image,label,lesion_id,x,y,width,height``.

    Raises:
        ConfigError: A number cannot work, or the folder cannot be written.
    """
    fewest, most = photos_per_lesion
    if not 1 <= fewest <= most or any(count < 1 for count in lesions_per_class.values()):
        what = f"{dict(lesions_per_class)} lesions with {fewest} to {most} photographs"
        raise ConfigError(Finding("draw_specimens", what, "Draw at least one lesion a class and one photograph each."))
    names = [label for label, count in lesions_per_class.items() for _ in range(count)]

    def draw(number: int) -> list[dict[str, str | int]]:
        # A generator for each lesion: threads may finish in any order.
        rng = np.random.default_rng([seed, number])
        structure = replace(class_structure(rng, names[number]), tint=(tints or {}).get(names[number], NO_TINT))
        drawn = draw_photographs(rng, structure, int(rng.integers(fewest, most + 1)))
        return [_keep(out, f"s{seed}-{number:04d}", view, names[number], one) for view, one in enumerate(drawn)]

    try:
        (out / "images").mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(available_cores()) as pool:
            shown = track(
                pool.map(draw, range(len(names))),
                description="drawing lesions",
                total=len(names),
                console=Console(stderr=True, force_jupyter=False),
                disable=not progress,
            )
            rows = [row for lesion in shown for row in lesion]
        table = pd.DataFrame(rows).to_csv(index=False).encode()
        atomic_write(out / "manifest.csv", lambda file: file.write(table))
    except OSError as error:
        raise ConfigError(write_finding(out, error)) from error
    return out / "manifest.csv"


def _keep(out: Path, lesion: str, view: int, label: str, drawn: Drawn) -> dict[str, str | int]:
    name = f"images/{lesion}-{view}.jpg"
    atomic_write(out / name, lambda file: file.write(drawn.jpeg))
    box = drawn.box
    place = {"x": box.x, "y": box.y, "width": box.width, "height": box.height}
    return {"image": name, "label": label, "lesion_id": lesion, **place}


def _taken(rng: np.random.Generator, drawn: DrawnPhotograph) -> Drawn:
    rows, columns = np.nonzero(drawn.tumour)
    left, right = int(columns.min()), int(columns.max()) + 1
    top, bottom = int(rows.min()), int(rows.max()) + 1
    slack = rng.uniform(0, BOX_SLACK, 4) * np.array([right - left, bottom - top, right - left, bottom - top])
    left, top = max(0, int(left - slack[0])), max(0, int(top - slack[1]))
    right, bottom = min(WIDTH, int(right + slack[2])), min(HEIGHT, int(bottom + slack[3]))
    quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(60, 93))]
    _, jpeg = cv2.imencode(".jpg", cv2.cvtColor(drawn.image, cv2.COLOR_RGB2BGR), quality)
    return Drawn(jpeg.tobytes(), Box(left, top, right - left, bottom - top))
