"""Memory and processor time of a pass of each super-resolution network, by torch and by ncnn, each in a process."""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from spandrel.architectures.ESRGAN import ESRGAN

from benchmarks.data.super_resolution import picture, random_weights
from benchmarks.harness.figures import Grid, tell
from benchmarks.harness.timing import arguments
from kd_convnext.common.machine import memory_kept, peak_memory
from kd_convnext.data.crops.upscaling.build import build_upscaler

NETWORKS, WAYS = ("SRVGG", "RRDB"), ("ncnn", "spandrel")


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--sides", type=int, nargs="+", help="sides of the crops; 64, with --full 256 and 512")
    parser.add_argument("--only", nargs=3, metavar=("WEIGHTS", "WAY", "SIDE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only:
        weights, way, side = options.only
        print(json.dumps(of_one_pass(Path(weights), way, int(side))))
        return
    sides = options.sides or ((256, 512) if options.full else (64,))
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for network in NETWORKS:
            weights = random_weights(Path(name)) if network == "SRVGG" else random_rrdb(Path(name))
            for side in sides:
                for way in WAYS:
                    found = _alone(weights, way, side)
                    rows.append([f"{network}, {side} px, {way}", *found])
    columns = ("", "processor s", "peak MB in all", "of it before the pass")
    tell("One pass", [], [Grid("One pass, x4, float32, CPU", columns, rows)], [], options.json)


def random_rrdb(folder: Path) -> Path:
    """Writes random weights of x4plus's size: time and memory do not depend on their values."""
    path = folder / "rrdb.pth"
    torch.save({"params": ESRGAN().state_dict()}, path)
    return path


def of_one_pass(weights: Path, way: str, side: int) -> list[float]:
    """Runs one pass, after a small one; returns its processor seconds, and megabytes with and before it."""
    upscaler = build_upscaler(way, weights)  # type: ignore[arg-type]
    crop = picture(side)
    with memory_kept():
        upscaler(picture(16))
        before, start = peak_memory(), time.process_time()
        upscaler(crop)
        return [time.process_time() - start, round(peak_memory() / 1e6), round(before / 1e6)]


def _alone(weights: Path, way: str, side: int) -> list[float]:
    words = [sys.executable, "-m", "benchmarks.data.upscaler_memory", "--only", str(weights), way, str(side)]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    found: list[float] = json.loads(done.stdout)
    return found


if __name__ == "__main__":
    main()
