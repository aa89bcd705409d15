"""An epoch of crops, decoded, augmented and batched, from the cache and from the enlarged images themselves.

One process, one core. The x4 images are what upstream tools leave behind; they are read, resized and augmented as a
training script that starts from them would.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import albumentations as A
import cv2
import numpy as np
import torch
from _common import arguments, compared, interleaved, report
from torch.utils.data import default_collate

from kd_convnext.data.cache import CropCache, CropSpec, PreparedCrops
from kd_convnext.data.dataset import channels_first
from kd_convnext.data.manifest import read_manifest
from kd_convnext.data.packed import pack
from kd_convnext.data.prepared import Crops
from kd_convnext.data.synthetic import draw_specimens
from kd_convnext.data.transforms import AugmentSpec, Views

SIZE, BATCH, PAPER = 224, 32, 2221


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "").parse_args()
    count, rounds = (PAPER, 5) if options.full else (300, 3)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        crops, originals = prepared(folder, count)
        known = len(originals)
        packed = pack(crops, progress=False)
        quick, plain = (Views(SIZE, 3, AugmentSpec(engine=engine)) for engine in ("opencv", "albumentations"))
        sides: dict[str, Callable[[], object]] = {
            "cache, opencv": lambda: epoch(crops, known, quick, count),
            "cache, albumentations": lambda: epoch(crops, known, plain, count),
            "packed, opencv": lambda: epoch(packed, known, quick, count),
            "decoding alone": lambda: [crops.load(row % known) for row in range(count)],
            "x4 images": lambda: epoch_of_files(originals, count),
        }
        seconds = interleaved(sides, rounds)
    ratios = [
        compared("epoch", seconds, "cache, opencv", "x4 images", 4.0),
        compared("epoch", seconds, "cache, opencv", "decoding alone", 1 / 1.1),
        compared("epoch", seconds, "packed, opencv", "decoding alone", 1 / 1.1),
        compared("epoch", seconds, "packed, opencv", "x4 images", 4.0),
        compared("epoch", seconds, "cache, opencv", "cache, albumentations"),
    ]
    notes = [f"{count} crops, {SIZE} px, batches of {BATCH}, one core, page cache warm"]
    notes += [f"{side}: {count / float(np.median(values)):.0f} crops a second" for side, values in seconds.items()]
    report("Feeding", ratios, notes, options.json)


def prepared(folder: Path, count: int) -> tuple[PreparedCrops, list[Path]]:
    """Fills a cache with drawn specimens, and writes the enlarged images beside it as PNG files."""
    lesions = {name: max(3, count // 12) for name in ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")}
    manifest = read_manifest(draw_specimens(folder / "drawn", seed=0, lesions_per_class=lesions))
    rows = np.arange(min(count, len(manifest)))
    crops = CropCache(folder / "cache", CropSpec(upscaler="bicubic")).fill(manifest, rows, progress=False)
    whole = CropCache(folder / "whole", CropSpec(upscaler="bicubic", store_size=None)).fill(
        manifest, rows, progress=False
    )
    files = []
    for row in rows.tolist():
        files.append(folder / f"{row}.png")
        cv2.imwrite(str(files[-1]), cv2.cvtColor(whole.load(row), cv2.COLOR_RGB2BGR))
    return crops, files


def epoch(crops: Crops, known: int, views: Views, count: int) -> int:
    """Runs through the crops as the loader of a fit does."""
    samples = (
        {"image": channels_first(views(crops.load(row % known), row)), "label": 0, "index": row} for row in range(count)
    )
    return sum(len(default_collate(batch)["image"]) for batch in batched(samples))


def epoch_of_files(files: list[Path], count: int) -> int:
    """Reads and resizes the enlarged images, then augments with albumentations, as a script of one's own would."""
    augment = A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.VerticalFlip(p=0.5),
            A.Affine(translate_percent={"x": (-0.1, 0.1), "y": (-0.1, 0.1)}, border_mode=cv2.BORDER_REFLECT_101, p=1.0),
            A.RandomResizedCrop((SIZE, SIZE), scale=(0.9, 1.0), ratio=(1.0, 1.0), p=1.0),
        ]
    )

    def samples() -> Iterator[dict[str, object]]:
        for row in range(count):
            image = cv2.cvtColor(cv2.imread(str(files[row % len(files)])), cv2.COLOR_BGR2RGB)
            image = cv2.resize(image, (256, 256), interpolation=cv2.INTER_AREA)
            picture = augment(image=image)["image"]
            tensor = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
            yield {"image": tensor, "label": 0, "index": row}

    return sum(len(default_collate(batch)["image"]) for batch in batched(samples()))


def batched(samples: Iterator[dict[str, object]]) -> Iterator[list[dict[str, object]]]:
    """Collects samples into lists of one batch."""
    batch: list[dict[str, object]] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
