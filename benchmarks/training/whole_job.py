"""The paper's distillation as a user starts it: `kd-convnext fit`, 100 epochs of 1,778 images, in a process of its own.

On drawn specimens, about as many as the paper's photographs; packed crops, augmentation by OpenCV, the
rest by default. The teacher is a Swin-T after one epoch: what it says costs what a good one's answers cost. Without a
GPU it says so and ends; ``--trial`` runs the same code with small networks, a few lesions and two epochs, on a CPU.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness.figures import Figure, Grid, tell
from benchmarks.harness.timing import arguments
from benchmarks.harness.watching import TOLD
from kd_convnext.data.drawn.specimens import draw_specimens

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
LESIONS = {"Grade 1": 16, "Grade 2": 532, "Grade 3": 78, "AIS": 48, "MIA": 218}
"""As many lesions as give about the paper's 2,221 photographs, in its proportions."""

TARGET = 300.0
"""Seconds of the whole command, at most."""


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--trial", action="store_true", help="the same code at a small size: no measurement")
    parser.add_argument("--compile", choices=("auto", "on", "off"), default="auto", help="as `--model.compile`")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.trial:
        print("no GPU: nothing measured (--trial runs the code)")
        return
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        lesions = dict.fromkeys(LESIONS, 6) if options.trial else LESIONS
        manifest = draw_specimens(Path("drawn").absolute(), seed=0, lesions_per_class=lesions)
        data = [f"--data.manifest={manifest}", "--data.cache_dir=cache", "--data.upscaler=bicubic"]
        data += ["--data.loader.packed=true", "--data.augment.engine=opencv"]
        teacher, student = settings(options)
        fitted([*teacher, *data, "--trainer.max_epochs=1", "--trainer.default_root_dir=teacher"])
        words = [*student, *data, "--model.teacher_ckpt=teacher/checkpoints/best.ckpt"]
        words += ["--trainer.callbacks+=benchmarks.harness.watching.Watch", "--trainer.default_root_dir=student"]
        begun = time.time()
        said = fitted(words)
        seconds = time.time() - begun
    show(said, begun, seconds, options)


def settings(options: argparse.Namespace) -> tuple[list[str], list[str]]:
    """Returns the words that choose teacher and student, from scratch: the hub may be out of reach."""
    if options.trial:
        small = CONFIGS / "small_cpu"
        student = ["--config", str(small / "student.yaml"), "--trainer.max_epochs=2"]
        return ["--config", str(small / "teacher.yaml")], student
    teacher = ["--config", str(CONFIGS / "teacher_swin_tiny.yaml"), "--model.backbone.pretrained=false"]
    student = ["--config", str(CONFIGS / "kd_convnext_tiny.yaml"), "--model.student.pretrained=false"]
    return teacher, [*student, "--model.compile", {"on": "true", "off": "false"}.get(options.compile, "auto")]


def fitted(words: list[str]) -> str:
    """Runs ``kd-convnext fit`` in a process of its own; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *sys.path])}
    command = [sys.executable, "-m", "kd_convnext.cli", "fit", *words, "--trust", "benchmarks"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


def show(said: str, begun: float, seconds: float, options: argparse.Namespace) -> None:
    """Puts the command's account into figures."""
    lines = said.splitlines()
    found: Mapping[str, Any] = json.loads(next(line[len(TOLD) :] for line in lines if line.startswith(TOLD)))
    (first, _), (end, _) = found["first"], found["end"]
    epochs, validating = ([last - begin for (begin, _), (last, _) in found[name]] for name in ("epochs", "validations"))
    steps = found["steps"] // len(epochs)
    at_most = None if options.trial else TARGET
    figures = [
        Figure(f"whole command, {len(epochs)} epochs of {steps} steps", seconds, "s", at_most=at_most),
        Figure("of it: to the first step", first - begun, "s"),
        Figure("of it: validation", sum(validating), "s"),
        Figure("of it: after the last epoch", seconds - (end - begun), "s"),
        Figure("an epoch, validation and checkpoints in it", sorted(epochs)[len(epochs) // 2], "s"),
        Figure("waiting for data, of training", 100 * found["wait"], "%"),
    ]
    if found["peak"] is not None:
        figures.append(Figure("peak GPU memory", found["peak"], "GiB"))
    rows = [[line] for line in lines if line.startswith(("Fitting", "Machine", "The whole fit"))]
    tell("The whole distillation", figures, [Grid("The command said", ("",), rows)], [], options.json)


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
