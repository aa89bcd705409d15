"""A training step on the CPU: ours in a whole Lightning fit, against bare passes, a loop by hand, timm, torchdistill.

torchdistill is left out where it is not installed; ``pip install --no-deps torchdistill`` is enough.
"""

import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import torch

from benchmarks.harness.timing import Ratio, arguments, compared, interleaved, report
from benchmarks.training.step_sides import (
    Setting,
    Step,
    Turns,
    bare,
    by_hand,
    lightning_side,
    ours,
    timm_task,
    torchdistill_box,
)
from kd_convnext import TeacherModule
from kd_convnext.losses import Eq5
from kd_convnext.models.backbones import BackboneSpec
from kd_convnext.modules.optim import OptimSpec

Clock = Callable[[], float]
FIT, BARE = "our fit", "teacher + student, bare"
TARGETS = {BARE: 1.06, "by hand": 1.02, "timm's task": 1.04, "torchdistill": 1.0}
"""How many times the other side our fit's step may take."""

STORED = 1.05
"""How many times plain student training a step with stored teacher's answers may take."""


def main() -> None:
    """Measures and prints."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--teacher", default="swin_tiny_patch4_window7_224")
    parser.add_argument("--student", default="convnext_tiny")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of every side")
    parser.add_argument(
        "--cpu_time", action="store_true", help="processor time instead of the clock's; for a busy machine, --threads 1"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
    rounds = 60 if options.full else 4
    clock = time.process_time if options.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as name:
        specs = (BackboneSpec(name=spec, image_size=options.size) for spec in (options.teacher, options.student))
        setting = Setting(Path(name), options.batch, options.size, *specs)
        # The bars are drawn, but several at once cannot be read.
        with (Path(name) / "bars.txt").open("w") as bars, redirect_stdout(bars):
            ratios, notes = live(setting, rounds, clock)
            more, other = stored(setting, rounds, clock)
    kind = ", processor time" if options.cpu_time else ""
    where = f"{options.size} px, batch {options.batch}, threads: {options.threads}{kind}, fp32"
    title = f"A step, {options.teacher} to {options.student}, {where}"
    report(title, ratios + more, notes + other, options.json)


def live(setting: Setting, rounds: int, clock: Clock) -> tuple[list[Ratio], list[str]]:
    """Compares distillation with the teacher at work."""
    teacher, student = bare(setting)
    fit = lightning_side(setting, lambda: ours(setting), "live")
    sides: dict[str, Step] = {FIT: fit, "teacher": teacher, "student": student}
    sides |= {"by hand": by_hand(setting), "timm's task": timm_task(setting)}
    notes = []
    try:
        sides["torchdistill"] = torchdistill_box(setting)
    except ImportError:
        notes.append("torchdistill is not installed: left out")
    seconds = interleaved(sides, rounds, clock)
    fit.close()
    seconds[BARE] = seconds["teacher"] + seconds["student"]
    others = [name for name in TARGETS if name in seconds]
    ratios = [compared("distillation", seconds, FIT, name, 1 / TARGETS[name]) for name in others]
    return ratios, notes + [said(seconds, FIT, name, TARGETS[name]) for name in others]


def stored(setting: Setting, rounds: int, clock: Clock) -> tuple[list[Ratio], list[str]]:
    """Compares distillation from stored answers with training the student alone."""
    views = {"views": 1}
    plain = lambda: TeacherModule(5, backbone=setting.student, optim=OptimSpec(lr=1e-5))  # noqa: E731
    sides: dict[str, Turns] = {
        "student alone": lightning_side(setting, plain, "alone", **views),
        "stored logits": lightning_side(
            setting, lambda: ours(setting, teacher_cache=True, objective=Eq5(drop=["feature"])), "a", **views
        ),
        "stored logits, maps": lightning_side(setting, lambda: ours(setting, teacher_cache=True), "b", **views),
    }
    seconds = interleaved(sides, rounds, clock)
    for side in sides.values():
        side.close()
    names = list(sides)[1:]
    ratios = [compared("stored answers", seconds, name, "student alone", 1 / STORED) for name in names]
    return ratios, [said(seconds, name, "student alone", STORED) for name in names]


def said(seconds: dict[str, np.ndarray], name: str, other: str, target: float) -> str:
    """Puts a comparison the way the target is put, with a 95 % interval of the median."""
    ratios = seconds[name] / seconds[other]
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), (0.025, 0.975))
    return f"{name}: {np.median(ratios):.3f} ({low:.3f} to {high:.3f}) times {other}; at most {target}"


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    if "MALLOC_ARENA_MAX" not in os.environ:
        # The fits live in threads of their own; with arenas of their own each large tensor would cost page faults.
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | {"MALLOC_ARENA_MAX": "1"})
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
