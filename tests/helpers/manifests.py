"""Small manifests, on disk and in memory."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from kd_convnext.data.manifest.manifest import Manifest, read_manifest
from kd_convnext.errors import ManifestError

TABLE_1 = {"Grade 1": 41, "Grade 2": 1317, "Grade 3": 196, "AIS": 121, "MIA": 546}
TABLE_1_PARTS = {
    "train": (33, 1054, 157, 97, 437),
    "val": (3, 141, 23, 12, 55),
    "test": (5, 122, 16, 12, 54),
}
GOOD = [
    {"image": "images/a.png", "label": "AIS", "lesion_id": "L1"},
    {"image": "images/b.png", "label": "MIA", "lesion_id": "L2"},
]
BOX = {"x": 0, "y": 0, "width": 12, "height": 8}  # the whole of save_image's photograph


def save_image(path: Path, seed: int = 0, size: tuple[int, int] = (12, 8)) -> Path:
    """Writes a noise photograph of (width, height); each seed has other bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def write_csv(path: Path, rows: Sequence[Mapping[str, object]], encoding: str = "utf-8") -> Path:
    """Writes rows under the union of their columns."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_manifest(folder: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """Writes manifest.csv and a photograph for every image that does not exist yet."""
    for seed, row in enumerate(rows):
        image = folder / str(row["image"])
        if row["image"] and not image.exists():
            save_image(image, seed)
    return write_csv(folder / "manifest.csv", rows)


def manifest_of(
    labels: Sequence[str],
    lesions: Sequence[str] | None = None,
    *,
    images: Sequence[str] | None = None,
    patients: Sequence[str] | None = None,
    parts: Sequence[str] | None = None,
    class_names: Sequence[str] | None = None,
) -> Manifest:
    """A checked manifest without files behind it."""
    count = len(labels)
    images = images or [f"images/{i:05}.png" for i in range(count)]
    table = pd.DataFrame(
        {
            "row": range(2, count + 2),
            "image": images,
            "label": list(labels),
            "lesion_id": lesions or [""] * count,
            "patient_id": patients or [""] * count,
            **{name: pd.array([pd.NA] * count, dtype="Int64") for name in ("x", "y", "width", "height")},
            "split": parts or [""] * count,
            "image_width": 12,
            "image_height": 8,
            "photograph": images,
            "alike": "",
        }
    )
    names = tuple(class_names or sorted(set(labels)))
    return Manifest(Path("manifest.csv"), Path(), table, names)


def findings_of(path: Path, **options) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        read_manifest(path, **options)
    assert all(finding.remedy.endswith(".") for finding in caught.value.findings)
    return [str(finding) for finding in caught.value.findings]


def only_finding(folder: Path, rows: list[dict], **options) -> str:
    found = findings_of(write_manifest(folder, rows), **options)
    assert len(found) == 1, found
    return found[0]


def slice_of(shared: Path, name: str, rows_per_class: int, target: Path) -> pd.DataFrame:
    """Writes a manifest of a few whole photographs of each class, their paths made absolute."""
    folder = shared / "data" / name
    table = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
    chosen = set(table.groupby("label").head(rows_per_class)["image"])
    table = table[table["image"].isin(chosen)].copy()
    table["image"] = [str(folder / image) for image in table["image"]]
    table.to_csv(target, index=False)
    return table
