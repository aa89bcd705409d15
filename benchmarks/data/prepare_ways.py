"""The command ``prepare`` by torch and by ncnn over the same crops: processor time, and the difference of their pixels.

Each way runs in a process of its own with an empty cache; the two take turns over parts of the crops. A run over crops
that are all there already measures what the command takes besides: start, checks, index.
"""

import argparse
import csv
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.data.super_resolution import random_weights
from benchmarks.harness.figures import Figure, tell
from benchmarks.harness.timing import arguments
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.spec import CropSpec, UpscalerChoice
from kd_convnext.data.drawn.specimens import draw_specimens
from kd_convnext.data.manifest.manifest import read_manifest

WAYS: tuple[UpscalerChoice, ...] = ("ncnn", "spandrel")
PARTS = 2


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--manifest", type=Path, help="photographs with regions; drawn specimens by default")
    parser.add_argument("--sr_weights", type=Path, help="SRVGG weights; random ones of general-x4v3's size by default")
    parser.add_argument("--crops", type=int, help="crops spread over the manifest; 200 with --full, else 20")
    options = parser.parse_args()
    count = options.crops or (200 if options.full else 20)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        weights = (options.sr_weights or random_weights(folder)).absolute()
        source = options.manifest or draw_specimens(folder / "drawn", seed=0, progress=False)
        manifests, whole = parts_of(source, count, folder)
        seconds = timed(manifests, weights, folder)
        levels = differences(manifests, weights, folder)
    show(seconds, levels, count, whole, options)


def parts_of(source: Path, count: int, folder: Path) -> tuple[list[Path], int]:
    """Writes manifests of crops that are spread over another; returns them, and how many crops that one has."""
    with source.open(newline="") as file:
        rows = list(csv.DictReader(file))
    chosen = [rows[place] for place in np.linspace(0, len(rows) - 1, count).round().astype(int)]
    manifests = []
    for part in range(PARTS):
        path = folder / f"part{part}.csv"
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in chosen[part::PARTS]:
                writer.writerow(row | {"image": str(source.parent.absolute() / row["image"])})
        manifests.append(path)
    return manifests, len(rows)


def timed(manifests: Sequence[Path], weights: Path, folder: Path) -> dict[str, list[float]]:
    """Runs all ways over all parts; returns processor seconds of each, and of runs that find everything."""
    seconds: dict[str, list[float]] = {name: [] for name in (*WAYS, "found")}
    for manifest in manifests:
        for way in WAYS:
            seconds[way].append(prepared(manifest, way, weights, folder))
        seconds["found"].append(prepared(manifest, WAYS[0], weights, folder))
    return seconds


def prepared(manifest: Path, way: str, weights: Path, folder: Path) -> float:
    """Runs ``kd-convnext prepare``; returns its processor seconds."""
    words = [
        f"--manifest={manifest}",
        f"--cache_dir={folder / 'cache'}",
        f"--upscaler={way}",
        f"--sr_weights={weights}",
    ]
    before = os.times()
    done = subprocess.run(
        [sys.executable, "-m", "kd_convnext.cli", "prepare", *words], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    after = os.times()
    return after.children_user + after.children_system - before.children_user - before.children_system


def differences(manifests: Sequence[Path], weights: Path, folder: Path) -> np.ndarray:
    """Compares the enlarged crops of both ways; returns how many values differ by so many levels, int64 [256]."""
    counts = np.zeros(256, np.int64)
    for path in manifests:
        manifest = read_manifest(path)
        ours, theirs = (
            CropCache(folder / "cache", CropSpec(upscaler=way, sr_weights=str(weights), store_size=None)).fill(manifest)
            for way in WAYS
        )
        if ours.summary.made or theirs.summary.made:
            raise SystemExit("the enlarged crops of prepare were not found")
        for row in range(len(manifest)):
            apart = np.abs(ours.load(row).astype(np.int16) - theirs.load(row))
            counts += np.bincount(apart.ravel(), minlength=256)
    return counts


def show(
    seconds: dict[str, list[float]], levels: np.ndarray, count: int, whole: int, options: argparse.Namespace
) -> None:
    """Puts times and differences into figures."""
    start = float(np.median(seconds["found"]))
    each = {way: (sum(seconds[way]) - PARTS * start) / count for way in WAYS}
    ratios = np.array(seconds["ncnn"]) / np.array(seconds["spandrel"])
    scaled = [start + whole * each[way] for way in WAYS]
    figures = [
        Figure("a crop by ncnn", each["ncnn"] * 1e3, "ms"),
        Figure("a crop by torch", each["spandrel"] * 1e3, "ms"),
        Figure("the command over crops that are there", start, "s"),
        Figure("ncnn / torch, the commands as they ran", float(np.median(ratios)), "", float(np.ptp(ratios)) / 2),
        Figure(f"ncnn / torch, on paper for {whole:,} crops", scaled[0] / scaled[1], "", at_most=0.6),
        Figure("largest difference of a value", float(np.flatnonzero(levels)[-1]), "levels of 255"),
        Figure("values that differ", 1e6 * float(levels[1:].sum() / levels.sum()), "in a million"),
    ]
    notes = [f"processor time; {count} crops in {PARTS} parts, {levels.sum():,} values compared"]
    tell("prepare by ncnn and by torch, general-x4v3's size", figures, [], notes, options.json)


if __name__ == "__main__":
    begin = time.perf_counter()
    main()
    print(f"{time.perf_counter() - begin:.0f} s in all")
