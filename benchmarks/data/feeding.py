"""Crops for a fit: an epoch of them by itself, and how long a quick student waits for them.

An epoch: decoded, augmented and batched in one process on one core, from the cache and from the enlarged images
themselves. The x4 images are what upstream tools leave behind; they are read, resized and augmented as a training
script that starts from them would.

A fit: ConvNeXt-atto at 96 px, trained by Lightning on all cores, with each way of loading, and with the same batches
ready in memory. Each in a process of its own, in turn.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import albumentations as A
import cv2
import numpy as np
import pandas as pd
import torch
from torch.utils.data import DataLoader, default_collate

from benchmarks.harness.figures import Figure, tell
from benchmarks.harness.timing import arguments, compared, interleaved, report
from kd_convnext.common.machine import available_cores
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.packed import pack
from kd_convnext.data.crops.cache.prepared import Crops, PreparedCrops
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.drawn.specimens import draw_specimens
from kd_convnext.data.loading.augment import AugmentSpec
from kd_convnext.data.loading.dataset import SpecimenDataset, View
from kd_convnext.data.loading.loader import specimen_loader
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.data.loading.views import Views
from kd_convnext.data.manifest.manifest import read_manifest

SIZE, BATCH, PAPER = 224, 32, 2221
FIT_BATCH, FIT_STORED = 32, 128
"""Of the fits; crops stored somewhat larger than the network's pictures, as those of 256 px are for 224."""


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--one_fit", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one_fit:
        way, manifest = options.one_fit
        print(json.dumps(one_fit(manifest, **json.loads(way))))
        return
    count, rounds = (PAPER, 5) if options.full else (200, 3)
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
        costs = costs_of(packed, known, quick)
        found = fits(folder, list(WAYS) if options.full else BRIEFLY, 3 if options.full else 1)
    ratios = [
        compared("epoch", seconds, "cache, opencv", "x4 images", 4.0),
        compared("epoch", seconds, "cache, opencv", "decoding alone", 1 / 1.1),
        compared("epoch", seconds, "packed, opencv", "decoding alone", 1 / 1.1),
        compared("epoch", seconds, "packed, opencv", "x4 images", 4.0),
        compared("epoch", seconds, "cache, opencv", "cache, albumentations"),
    ]
    notes = [f"{count} crops, {SIZE} px, batches of {BATCH}, one core, page cache warm"]
    notes += [f"{side}: {count / float(np.median(values)):.0f} crops a second" for side, values in seconds.items()]
    notes += [f"packed, opencv, {what}: {value:.0f} us an image" for what, value in costs.items()]
    figures, more = of_fits(found)
    report("Feeding", ratios, notes, options.json)
    # A file of its own: both are whole records.
    path = options.json and options.json.with_stem(f"{options.json.stem}_fit")
    tell("Feeding a fit of ConvNeXt-atto at 96 px, batches of 32", figures, [], more, path)


WAYS: dict[str, dict[str, object]] = {
    "ready tensors": {"ready": True, "num_workers": 0},
    "cache, albumentations (default)": {},
    "cache, opencv": {"engine": "opencv"},
    "packed, opencv": {"engine": "opencv", "packed": True},
    "packed, opencv, no worker": {"engine": "opencv", "packed": True, "num_workers": 0},
}
RECOMMENDED = "packed, opencv"
BRIEFLY = ("ready tensors", "cache, albumentations (default)", RECOMMENDED, "packed, opencv, no worker")


def fits(folder: Path, ways: Sequence[str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Fits with each way of loading, in turn; returns what each fit measured."""
    manifest = many_regions(folder / "more")
    known = read_manifest(manifest)
    spec = CropSpec(upscaler="bicubic", store_size=FIT_STORED)
    crops = CropCache(folder / "cache", spec).fill(known, np.arange(len(known)), progress=False)
    pack(crops, progress=False)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for name in list(ways) * rounds:
        words = ["--one_fit", json.dumps({"folder": str(folder), **WAYS[name]}), str(manifest)]
        done = subprocess.run([sys.executable, __file__, *words], capture_output=True, text=True, check=False)
        if done.returncode:
            raise SystemExit(done.stdout + done.stderr)
        found[name].append(json.loads(done.stdout.splitlines()[-1]))
    return found


def many_regions(folder: Path) -> Path:
    """Draws photographs and lists four regions of each: enough steps an epoch without drawing for minutes."""
    lesions = dict.fromkeys(("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA"), 12)
    manifest = draw_specimens(folder, seed=1, lesions_per_class=lesions)
    table = pd.read_csv(manifest)
    regions = pd.concat([table.assign(width=table["width"] - 4 * number) for number in range(4)])
    regions.to_csv(folder / "regions.csv", index=False)
    return folder / "regions.csv"


def one_fit(
    manifest: str,
    *,
    folder: str,
    engine: Literal["albumentations", "opencv"] = "albumentations",
    packed: bool = False,
    ready: bool = False,
    num_workers: int | None = None,
) -> dict[str, float]:
    """Fits for two epochs; returns the second's share of waiting, its images a second, and the loader processes."""
    import lightning.pytorch as pl

    from kd_convnext import SpecimenDataModule, TeacherModule
    from kd_convnext.models.backbones import BackboneSpec
    from kd_convnext.training.pace import StepClock

    class Clock(pl.Callback):
        def on_train_epoch_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
            self.workers = data.workers.count
            if trainer.current_epoch == 1:
                self.clock = StepClock()  # the loader's processes have started
            elif trainer.current_epoch:
                self.clock.ask()

        def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.current_epoch:
                self.clock.start()

        def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
            if trainer.current_epoch:
                self.clock.end()

    data = SpecimenDataModule(
        manifest,
        cache_dir=f"{folder}/cache",
        crops=CropSpec(upscaler="bicubic", store_size=FIT_STORED),
        image_size=96,
        batch_size=FIT_BATCH,
        augment=AugmentSpec(engine=engine),
        loader=LoaderSpec(packed=packed, num_workers=num_workers),
    )
    module = TeacherModule(data.num_classes, backbone=BackboneSpec("convnext_atto", image_size=96))
    clock = Clock()
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=2,
        limit_val_batches=0,
        default_root_dir=folder,
        enable_model_summary=False,
        callbacks=[clock],
        **options,  # type: ignore[arg-type]
    )
    if ready:
        batch = {"image": torch.randint(0, 256, (FIT_BATCH, 3, 96, 96), dtype=torch.uint8)}
        batch |= {"label": torch.arange(FIT_BATCH) % data.num_classes, "index": torch.arange(FIT_BATCH)}
        steps = -(-len(data.split.rows("train")) // FIT_BATCH)
        trainer.fit(module, DataLoader([batch] * steps, batch_size=None))
    else:
        trainer.fit(module, datamodule=data)
    passed = clock.clock.waited + clock.clock.worked
    rate = clock.clock.steps * FIT_BATCH / passed
    return {"share": clock.clock.wait_share, "rate": rate, "workers": float(clock.workers)}


def of_fits(found: dict[str, list[dict[str, float]]]) -> tuple[list[Figure], list[str]]:
    """Sums up the fits."""
    figures = []
    base = [each["rate"] for each in found["ready tensors"]]
    for name, rounds in found.items():
        shares, rates = ([each[key] for each in rounds] for key in ("share", "rate"))
        target = 5.0 if name == RECOMMENDED else None
        figures.append(Figure(f"{name}: waiting", 100 * float(np.median(shares)), "%", at_most=target))
        figures.append(Figure(f"{name}: images a second", float(np.median(rates)), ""))
        if name != "ready tensors":
            ratios = [rate / each for rate, each in zip(rates, base, strict=True)]
            figures.append(Figure(f"{name}: speed against ready tensors", 100 * float(np.median(ratios)), "%"))
    taken = {name: f"{rounds[0]['workers']:.0f}" for name, rounds in found.items() if name != "ready tensors"}
    chosen = ", ".join(f"{name}: {number}" for name, number in taken.items())
    return figures, [f"{available_cores()} cores; loader processes: {chosen}"]


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
    dataset = SpecimenDataset(crops, np.arange(known), np.zeros(known, np.int64), views)
    keys = [View(row % known, row) for row in range(count)]
    return sum(len(dataset.batch(keys[start : start + BATCH])["image"]) for start in range(0, count, BATCH))


def costs_of(crops: Crops, known: int, views: Views) -> dict[str, float]:
    """Measures what an image costs by stage, in microseconds of processor time, page cache warm."""
    dataset = SpecimenDataset(crops, np.arange(known), np.zeros(known, np.int64), views)
    keys = [View(number % known, number) for number in range(1024)]
    loaded = [crops.load(row) for row in range(known)]

    def draw() -> None:
        for position, seed in keys:
            views(loaded[position], seed)

    def batch() -> None:
        for start in range(0, len(keys), BATCH):
            dataset.batch(keys[start : start + BATCH])

    stages = interleaved({"window, resize, flips": draw, "whole batches": batch}, 5, time.process_time)
    costs = {name: float(np.median(values)) / len(keys) for name, values in stages.items()}
    options: dict[str, Any] = {"sampler": keys, "num_workers": 1}
    for name, make in (
        ("torch's loader", lambda: DataLoader(dataset, BATCH, persistent_workers=True, **options)),
        ("our loader", lambda: specimen_loader(dataset, BATCH, **options)),
    ):
        # What starting takes is in both.
        trainer, process = (spent(make, 9) - spent(make, 1)) / (8 * len(keys))
        costs |= {f"{name}, its process": float(process), f"{name}, the trainer": float(trainer)}
    return {name: 1e6 * value for name, value in costs.items()}


def spent(make: Callable[[], DataLoader[Any]], epochs: int) -> np.ndarray:
    """Makes a loader, runs through it and ends it; returns processor seconds of this process and of the loader's."""
    start, loader = os.times(), make()
    for _ in range(epochs):
        for _ in loader:
            pass
    del loader  # its process ends, and is counted
    end = os.times()
    mine = end.user + end.system - start.user - start.system
    return np.array([mine, end.children_user + end.children_system - start.children_user - start.children_system])


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
    if "--one_fit" not in sys.argv:
        print(f"{time.perf_counter() - start:.0f} s in all")
