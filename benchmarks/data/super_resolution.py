"""Super-resolution per crop against RealESRGANer, against the machine's matrix product, and over its cores."""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from spandrel.architectures.Compact import Compact

from benchmarks.harness.timing import Ratio, arguments, compared, interleaved, report
from kd_convnext.common.arrays import Pixels
from kd_convnext.common.machine import memory_kept
from kd_convnext.data.crops.pool import crop_pool
from kd_convnext.data.crops.upscaling.build import build_upscaler
from kd_convnext.data.crops.upscaling.upscaler import Upscaler

SIDES = (128, 256)
CHANNELS, LAYERS = 64, 32


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--sr_weights", type=Path, help="SRVGG weights; random ones of that size by default")
    parser.add_argument("--processor_time", action="store_true", help="count processor time, on a machine with company")
    options = parser.parse_args()
    clock = time.process_time if options.processor_time else time.perf_counter
    rounds = 15 if options.full else 5
    cores = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        weights = options.sr_weights or random_weights(Path(folder))
        ratios, notes = [], []
        for threads in sorted({1, cores}):
            torch.set_num_threads(threads)
            for side in SIDES:
                found, note = against_the_reference(weights, side, threads, rounds, clock)
                ratios += found
                notes.append(note)
        if cores > 1:
            for side in SIDES:
                ratios += over_cores(weights, side, cores, rounds)
    report("Super-resolution, SRVGG x4, fp32, CPU", ratios, notes, options.json)


def random_weights(folder: Path) -> Path:
    """Writes random weights of general-x4v3's size: the time does not depend on their values."""
    path = folder / "srvgg.pth"
    network = Compact(num_feat=CHANNELS, num_conv=LAYERS, upscale=4)
    torch.save({"params": network.state_dict()}, path)
    return path


def against_the_reference(
    weights: Path, side: int, threads: int, rounds: int, clock: Callable[[], float]
) -> tuple[list[Ratio], str]:
    """Compares one crop through all implementations, and with the rate of a matrix product."""
    crop = picture(side)
    winograd = build_upscaler("ncnn", weights)
    ours, theirs = build_upscaler("spandrel", weights), build_upscaler("realesrgan", weights)
    narrow = build_upscaler("spandrel", weights, precision="bfloat16")
    work = 2 * 9 * side**2 * (3 * CHANNELS + LAYERS * CHANNELS**2 + CHANNELS * 48)
    product = torch.randn(1024, 1024)
    products = max(1, round(work / (2 * 1024**3)))

    def multiply() -> None:
        for _ in range(products):
            torch.mm(product, product)

    def as_prepare_does() -> None:
        with memory_kept():
            ours(crop)

    def by_ncnn() -> None:
        with memory_kept():
            winograd(crop)

    def in_bfloat16() -> None:
        with memory_kept():
            narrow(crop)

    sides = {
        "torch": as_prepare_does,
        "torch in bfloat16": in_bfloat16,
        "RealESRGANer": lambda: theirs(crop),
        "matrix product": multiply,
    }
    if threads == 1:
        sides["ncnn"] = by_ncnn
    seconds = interleaved(sides, rounds, clock)
    name = f"{side} px, {threads} thread" + "s" * (threads > 1)
    share = seconds["matrix product"] * (work / (products * 2 * 1024**3))
    rate = work / float(np.median(share)) / 1e9
    seconds["matrix product"] = share
    difference = int(np.abs(ours(crop).astype(int) - theirs(crop)).max())
    apart, further = (int(cv2.absdiff(ours(crop), other(crop)).max()) for other in (winograd, narrow))
    levels = f"torch is {difference} level of 255 from RealESRGANer, {apart} from ncnn, {further} from bfloat16"
    note = f"{name}: {levels}; matrix product at {rate:.0f} GFLOP/s"
    # A pass of ncnn has one thread in this package: with more, passes run side by side (`over_cores`).
    wanted = {"torch": 1.7, "RealESRGANer": 1.9}
    of_ncnn = [compared(name, seconds, "ncnn", other, wanted[other]) for other in wanted if threads == 1]
    found = [
        *of_ncnn,
        compared(name, seconds, "torch", "RealESRGANer"),
        compared(name, seconds, "torch in bfloat16", "torch"),
        compared(f"{name}: share of the fp32 rate", seconds, "torch", "matrix product", 0.85),
    ]
    return found, note


def over_cores(weights: Path, side: int, cores: int, rounds: int) -> list[Ratio]:
    """Compares the ways of `prepare`, passes of one thread side by side, with passes in turn on all cores."""
    crops = [picture(side, seed) for seed in range(2 * cores)]
    ncnn, ours, theirs = (build_upscaler(name, weights) for name in ("ncnn", "spandrel", "realesrgan"))

    def side_by_side(upscaler: Upscaler) -> None:
        torch.set_num_threads(cores)
        with crop_pool(upscaler) as pool:
            list(pool.map(upscaler, crops))

    def together(upscaler: Upscaler) -> None:
        torch.set_num_threads(cores)
        for crop in crops:
            upscaler(crop)

    sides: dict[str, Callable[[], None]] = {
        "ncnn": lambda: side_by_side(ncnn),
        "torch": lambda: side_by_side(ours),
        f"torch with {cores} threads": lambda: together(ours),
        "RealESRGANer": lambda: together(theirs),
    }
    seconds = interleaved(sides, rounds)
    name = f"{side} px, {len(crops)} crops, all cores"
    return [
        compared(name, seconds, "ncnn", "torch", 1.7),
        compared(name, seconds, "ncnn", "RealESRGANer", 1.9),
        compared(name, seconds, "torch", f"torch with {cores} threads"),
    ]


def picture(side: int, seed: int = 0) -> Pixels:
    """Draws a crop with structure at every scale."""
    rng = np.random.default_rng(seed)
    waves = np.sin(
        np.linspace(0, 9, side)[:, None, None] * rng.uniform(1, 5, 3) + np.linspace(0, 7, side)[None, :, None]
    )
    noise = rng.normal(0, 20, (side, side, 3))
    return np.asarray((127 + 90 * waves + noise).clip(0, 255), np.uint8)


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
