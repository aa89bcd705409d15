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

import torch

from benchmarks.harness.figures import Figure, Grid, tell
from benchmarks.harness.timing import arguments
from kd_convnext.data.drawn.specimens import draw_specimens

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LESIONS = {"Grade 1": 16, "Grade 2": 532, "Grade 3": 78, "AIS": 48, "MIA": 218}
"""As many lesions as give about the paper's 2,221 photographs, in its proportions."""

TARGET = 300.0
"""Seconds of the whole command, at most."""

WATCH = """
import json, time
import torch
from lightning.pytorch import Callback
from kd_convnext.pace import StepClock
class Watch(Callback):
    def __init__(self):
        self.clock, self.first, self.epochs, self.validating = StepClock(), 0.0, [], 0.0
    def on_train_epoch_start(self, *_):
        self.begun = time.time()
        self.clock.ask()
    def on_train_batch_start(self, *_):
        self.first = self.first or time.time()
        self.clock.start()
    def on_train_batch_end(self, *_):
        self.clock.end()
    def on_validation_start(self, trainer, *_):
        self.judged = time.time()
    def on_validation_end(self, trainer, *_):
        self.validating += 0.0 if trainer.sanity_checking else time.time() - self.judged
        self.clock.ask()
    def on_train_epoch_end(self, *_):
        self.epochs.append(time.time() - self.begun)
    def on_fit_end(self, trainer, module):
        cuda = module.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated() / 2**30 if cuda else float("nan")
        found = {"first": self.first, "end": time.time(), "epochs": self.epochs, "steps": self.clock.steps}
        found |= {"validating": self.validating, "wait": self.clock.wait_share, "peak": peak}
        print("watched " + json.dumps(found), flush=True)
"""


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
        Path("watching.py").write_text(WATCH)
        lesions = dict.fromkeys(LESIONS, 6) if options.trial else LESIONS
        manifest = draw_specimens(Path("drawn").absolute(), seed=0, lesions_per_class=lesions)
        data = [f"--data.manifest={manifest}", "--data.cache_dir=cache", "--data.upscaler=bicubic"]
        data += ["--data.loader.packed=true", "--data.augment.engine=opencv"]
        teacher, student = settings(options)
        fitted([*teacher, *data, "--trainer.max_epochs=1", "--trainer.default_root_dir=teacher"])
        words = [*student, *data, "--model.teacher_ckpt=teacher/checkpoints/best.ckpt"]
        words += ["--trainer.callbacks+=watching.Watch", "--trainer.default_root_dir=student"]
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
    command = [sys.executable, "-m", "kd_convnext.cli", "fit", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    return done.stdout


def show(said: str, begun: float, seconds: float, options: argparse.Namespace) -> None:
    """Puts the command's account into figures."""
    lines = said.splitlines()
    found: Mapping[str, object] = json.loads(next(line[8:] for line in lines if line.startswith("watched ")))
    first, end, wait, validating = (float(str(found[name])) for name in ("first", "end", "wait", "validating"))
    epochs = [float(value) for value in found["epochs"]]  # type: ignore[attr-defined]
    steps = int(str(found["steps"])) // len(epochs)
    at_most = None if options.trial else TARGET
    figures = [
        Figure(f"whole command, {len(epochs)} epochs of {steps} steps", seconds, "s", at_most=at_most),
        Figure("of it: to the first step", first - begun, "s"),
        Figure("of it: validation", validating, "s"),
        Figure("of it: after the last epoch", seconds - (end - begun), "s"),
        Figure("an epoch, validation and checkpoints in it", sorted(epochs)[len(epochs) // 2], "s"),
        Figure("waiting for data, of training", 100 * wait, "%"),
        Figure("peak GPU memory", float(str(found["peak"])), "GiB"),
    ]
    rows = [[line] for line in lines if line.startswith(("Fitting", "Machine", "The whole fit"))]
    tell("The whole distillation", figures, [Grid("The command said", ("",), rows)], [], options.json)


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
