"""From photographs to a tested student on a CPU: minutes of `configs/small_cpu/best.yaml` by parts, and a plain form.

As a user types it: ``prepare``, ``fit`` (teacher, student) and ``test``, on drawn specimens with random weights of the
real sizes: what is right costs as much as what is wrong. In the plain form the teacher answers live on every view. What
a part takes for a photograph (and epoch) is measured on few photographs and epochs and scaled, on paper, to a set and
to the recipe's epochs; what a command takes whatever the photographs is added as it is.
"""

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import yaml
from safetensors.torch import save_file

from benchmarks.data.super_resolution import random_weights
from benchmarks.harness.figures import Figure, Grid, tell
from benchmarks.harness.timing import arguments
from benchmarks.harness.watching import TOLD, Moment
from kd_convnext.data.drawn.specimens import draw_specimens

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "small_cpu"
CLASSES = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")
FITS = {"teacher": "teacher_vit", "student": "best"}
TRAINING = 0.8  # share of the photographs
FORMS = ("recipe", "plain")
NOTHING = (0.0, 0.0)


@dataclass(frozen=True)
class Part:
    """What one part took.

    Attributes:
        name: Of the part.
        fixed: Minutes by the clock and of the processor, whatever the photographs.
        each: Seconds by the clock and of the processor for a photograph and epoch.
        photographs: Share of the set that it works on.
        epochs: Epochs of the recipe; 1 for what is done once.
    """

    name: str
    fixed: tuple[float, float]
    each: tuple[float, float]
    photographs: float
    epochs: int = 1

    def minutes(self, count: int) -> tuple[float, float]:
        """Scales to a set of so many photographs; minutes by the clock and of the processor."""
        times = count * self.photographs * self.epochs
        clock, processor = ((fixed + each * times) / 60 for fixed, each in zip(self.fixed, self.each, strict=True))
        return clock, processor


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--photographs", type=int, default=2221, help="the set to scale to; the paper's by default")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=FORMS, help="what is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        lesions = dict.fromkeys(CLASSES, 16 if options.full else 6)
        manifest = draw_specimens(Path("drawn").absolute(), seed=0, lesions_per_class=lesions, progress=False)
        Path("weights").mkdir()
        vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0)
        save_file(vit.state_dict(), "weights/vit_small_patch14_dinov2.safetensors")
        weights = random_weights(Path().absolute())
        epochs = 3 if options.full else 2
        crops = prepared(manifest, weights)
        found = {form: [*crops, *parts_of(form, manifest, weights, epochs)] for form in options.forms}
    show(found, options)


def prepared(manifest: Path, weights: Path) -> list[Part]:
    """Prepares the crops that all forms begin with; returns the parts."""
    words = ["prepare", f"--manifest={manifest}", "--cache_dir=cache", f"--sr_weights={weights}"]
    looked, _ = timed([*words, "--dry_run"])
    made, _ = timed(words)
    each = share(less(made, looked), photographs_in(manifest))
    return [Part("read and check", looked, NOTHING, 1), Part("cut and enlarge", NOTHING, each, 1)]


def parts_of(form: str, manifest: Path, weights: Path, epochs: int) -> list[Part]:
    """Trains and tests a form; returns its parts."""
    shutil.copytree("cache", f"{form}/cache")  # each form has the teacher's features still to compute
    recipe = written(form, epochs)
    data = [f"--data.manifest={manifest}", f"--data.cache_dir={form}/cache", f"--data.sr_weights={weights}"]
    fit, said = timed(["fit", "--config", str(recipe), *data, "--trainer.default_root_dir", form], "benchmarks")
    best = Path(form) / "checkpoints" / "best.ckpt"
    test, _ = timed(["test", "--config", f"{form}/config.yaml", f"--ckpt_path={best}"], "benchmarks")
    judging = Part("judging on the test part", test, NOTHING, 1)
    return [*trained(form, fit, said, photographs_in(manifest)), judging]


def photographs_in(manifest: Path) -> int:
    """Counts the rows of a manifest."""
    return len(manifest.read_text().splitlines()) - 1


def written(form: str, epochs: int) -> Path:
    """Writes the two configurations with few epochs and a watch each; returns the student's."""
    for name, file in FITS.items():
        config: dict[str, Any] = yaml.safe_load((CONFIGS / f"{file}.yaml").read_text())
        watch = {"class_path": "benchmarks.harness.watching.Watch", "init_args": {"name": name}}
        trainer, model = config["trainer"], config["model"]["init_args"]
        trainer["callbacks"] = [*trainer.get("callbacks", []), watch]
        trainer["enable_progress_bar"] = False
        if "teacher_cache" in model:
            trainer["max_epochs"] = epochs
            if form == "plain":
                model["teacher_cache"] = False
                del config["data"]["loader"]["views"]
        if "teacher_config" in config:
            config["teacher_config"] = f"{form}/teacher.yaml"
        (Path(form) / f"{name}.yaml").write_text(yaml.safe_dump(config))
    return Path(form) / "student.yaml"


def trained(form: str, whole: tuple[float, float], said: str, photographs: int) -> list[Part]:
    """Takes a fit apart by what its watches told."""
    told = [json.loads(line[len(TOLD) :]) for line in said.splitlines() if line.startswith(TOLD)]
    accounts = {account["name"]: account for account in told}
    teacher, student = accounts["teacher"], accounts["student"]
    features = between(teacher["setup"], teacher["first"])
    images = student["images"] / len(student["epochs"])
    validations = [between(*pair) for pair in student["validations"]]
    epochs = [between(*pair) for pair in student["epochs"]]
    # The first epoch also pays for what is made once, such as memory.
    steps = [less(epoch, judged) for epoch, judged in zip(epochs, validations, strict=True)][1:]
    length = yaml.safe_load((CONFIGS / f"{FITS['student']}.yaml").read_text())["trainer"]["max_epochs"]
    # The plain form's teacher is only loaded here, which takes as long whatever the photographs.
    views = between(student["setup"], student["first"]) if form == "recipe" else NOTHING
    spent = plus(features, views)
    for epoch in epochs:
        spent = plus(spent, epoch)
    labelled = round(TRAINING * photographs)
    return [
        Part("teacher: features and head", NOTHING, share(features, labelled), TRAINING),
        Part("teacher: the student's views", NOTHING, share(views, labelled), TRAINING),
        Part("student: steps", NOTHING, share(middle(steps), images), TRAINING, length),
        Part("student: validation", NOTHING, share(middle(validations), round(0.1 * photographs)), 0.1, length),
        Part("imports, set-up, files of the two fits", less(whole, spent), NOTHING, 1),
    ]


def timed(words: Sequence[str], trust: str | None = None) -> tuple[tuple[float, float], str]:
    """Runs ``kd-convnext``; returns seconds by the clock and of the processor, and what it printed."""
    command = [sys.executable, "-m", "kd_convnext.cli", *words, *(["--trust", trust] if trust else [])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    begun, before = time.time(), os.times()
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    seconds, after = time.time() - begun, os.times()
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return (seconds, used), done.stdout


def between(start: Moment, end: Moment) -> tuple[float, float]:
    """Returns the seconds from one moment to another."""
    return less((end[0], end[1]), (start[0], start[1]))


def less(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Returns the difference of two pairs."""
    return one[0] - other[0], one[1] - other[1]


def plus(one: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Returns the sum of two pairs."""
    return one[0] + other[0], one[1] + other[1]


def share(one: tuple[float, float], count: float) -> tuple[float, float]:
    """Divides a pair."""
    return one[0] / count, one[1] / count


def middle(pairs: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Returns the medians of the first and of the second."""
    clock, processor = np.median(np.array(pairs), axis=0).tolist()
    return clock, processor


def show(found: Mapping[str, list[Part]], options: argparse.Namespace) -> None:
    """Puts the parts into tables."""
    grids, totals = [], {}
    for form, parts in found.items():
        minutes = [part.minutes(options.photographs) for part in parts]
        clock, processor = (sum(column) for column in zip(*minutes, strict=True))
        totals[form] = processor
        rows: list[list[object]] = [
            [part.name, part.fixed[1], part.each[1] * 1e3, part.epochs, *pair, f"{pair[1] / processor:.0%}"]
            for part, pair in zip(parts, minutes, strict=True)
        ]
        rows.append(["whole", "", "", "", clock, processor, "100%"])
        columns = ("", "once, s", "a photograph and epoch, ms", "epochs", "minutes", "core-minutes", "share")
        grids.append(Grid(f"{form}, {options.photographs:,} photographs on paper", columns, rows))
    figures = []
    if set(totals) == set(FORMS):
        ratio = totals["recipe"] / totals["plain"]
        figures.append(Figure("core-minutes, recipe / plain form", ratio, "", at_most=0.5))
    notes = ["'once' and 'a photograph and epoch' are processor time; minutes are those of this run, by the clock"]
    tell("From photographs to a tested student", figures, grids, notes, options.json)


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
