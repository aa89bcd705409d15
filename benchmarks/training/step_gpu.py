"""A training step on a GPU: our compiled step in a Lightning fit, against eager loops, timm, and separate compilation.

And what could make it faster: our step without Lightning, the networks in `channels_last`, and, eagerly, the teacher on
a stream of its own. A ratio below 1 says that the other side is the faster one; a last line names the fastest.

bf16, batches already in pinned memory, so that the loader has no part in it. Peak memory is measured in processes of
their own. Without a GPU it says so and ends.
"""

import argparse
import json
import logging
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch._dynamo.utils import counters

from benchmarks.harness.timing import Ratio, arguments, compared, report
from benchmarks.training.step_gpu_sides import (
    OneBatch,
    Parts,
    Step,
    by_hand,
    ours_by_hand,
    separate,
    student_alone,
    timm_task,
    wait,
)
from kd_convnext import DistillModule, TeacherModule
from kd_convnext.common.machine import peak_memory
from kd_convnext.models.backbones import BackboneSpec
from kd_convnext.modules import compiled_step as compiled
from kd_convnext.modules.compiled_step import LAUNCH_BOUND
from kd_convnext.modules.optim import OptimSpec

FAST, EAGER, TIMM, SUM = "our fit, compiled", "by hand, eager", "timm's task, eager", "sum of parts, compiled"
BARE, LAST = "our step, compiled, no Lightning", "our step, compiled, channels_last"
STREAM = "by hand, eager, teacher's stream"
LAUNCH_TARGET, LARGE_TARGET, MEMORY_TARGET = 2.5, 1.0, 1.15
"""Images a second against eager loops at launch-bound batches; against the sum of parts at larger ones; memory."""

GIB = 2**30


def main() -> None:
    """Measures and prints."""
    options = _options()
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no GPU: nothing measured")
        return
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # not ours: a compilation that fails must be seen
    if options.device == "cpu":
        compiled.BACKEND = "aot_eager"
    with tempfile.TemporaryDirectory() as name:
        if options.memory_of:
            print(json.dumps(peaks(options, Path(name))))
            return
        ratios, notes = [], [_device(options)]
        for batch in options.batch:
            more, said = measured(options, batch, Path(name))
            ratios, notes = ratios + more, notes + said
    title = f"A step on a GPU, {options.teacher} to {options.student}, {options.image_size} px, bf16"
    report(title, ratios, notes, options.json)


def measured(options: argparse.Namespace, batch: int, folder: Path) -> tuple[list[Ratio], list[str]]:
    """Compares the sides at one batch size."""
    parts = Parts(options.teacher, options.student, options.image_size, batch, options.device)
    others: dict[str, Step] = {EAGER: by_hand(parts), STREAM: by_hand(parts, beside=True), TIMM: timm_task(parts)}
    for name, layout in ((BARE, torch.contiguous_format), (LAST, torch.channels_last)):
        others[name] = ours_by_hand(parts, set_up(ours(options, folder)), layout)
    others |= separate(parts, compiled.BACKEND)
    turns = Interleaved(others, options.rounds, options.device)
    module = ours(options, folder, compile=True)
    fit(module, batch, options, turns, folder)
    seconds = {name: np.array(values) for name, values in turns.seconds.items()}
    seconds[SUM] = sum(values for name, values in seconds.items() if name.startswith("part"))
    launches, work = (LAUNCH_TARGET, None) if batch <= LAUNCH_BOUND else (None, LARGE_TARGET)
    if options.device == "cpu":
        launches = work = None
    at = f"batch {batch}"
    targets = {EAGER: launches, TIMM: launches, SUM: work, STREAM: None, BARE: None, LAST: None}
    ratios = [compared(at, seconds, FAST, other, target) for other, target in targets.items()]
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    notes = [f"{at}, {name}: {batch / value:.0f} images a second" for name, value in medians.items()]
    saved = medians[EAGER] - medians[FAST]
    pays = f"pays after {turns.first / saved:.0f} steps" if saved > 0 else "never pays"
    notes.append(f"{at}: {turns.plan}; the first step took {turns.first:.1f} s, which {pays}")
    if parts.recorded:
        notes.append(f"{at}: {counters['inductor']['cudagraph_skips']} graphs could not be recorded")
    notes.append(f"{at}: largest relative difference of loss terms from eager {difference(module, parts):.1e}")
    return ratios, [*notes, *memory(options, batch), f"{at}: {fastest(medians)}"]


def fastest(medians: dict[str, float]) -> str:
    """Names the fastest whole step."""
    whole = {name: value for name, value in medians.items() if name != SUM and not name.startswith("part")}
    best, fit = min(whole, key=lambda name: whole[name]), whole[FAST]
    return f"the fastest is '{best}', {fit / whole[best]:.2f} times the images a second of '{FAST}'"


class Interleaved(pl.Callback):
    """Times the steps of a fit and, after each, one step of every other side.

    In the same thread: recorded graphs belong to the one that recorded them.

    Attributes:
        seconds: Per side.
        first: Seconds of the fit's first step, in which it compiles.
        plan: How the fit runs its steps.
    """

    def __init__(self, others: dict[str, Step], rounds: int, device: str) -> None:
        """Runs nothing yet: the fit's first step must find nothing compiled."""
        self.others, self.rounds, self.device = others, rounds, device
        self.seconds: dict[str, list[float]] = {name: [] for name in (FAST, *others)}
        self.first, self.plan = 0.0, ""

    def on_fit_start(self, trainer: pl.Trainer, module: DistillModule) -> None:
        """Notes what was planned; a plan that fails says so by itself."""
        self.plan = str(compiled.plan_compile(module.compile_asked, trainer))

    def on_train_epoch_start(self, *args: Any) -> None:
        """Starts the clock."""
        wait(self.device)
        self._mark = time.perf_counter()

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *args: Any) -> None:
        """Ends a step of the fit, from the end of the one before to here; then lets the others take theirs."""
        wait(self.device)
        taken = time.perf_counter() - self._mark
        # In recorded memory, which other recorded sides share: they would have to save them.
        module.zero_grad()
        if self.first:
            self.seconds[FAST].append(taken)
            for name, step in self.others.items():
                self.seconds[name].append(timed(step, self.device))
        else:
            self.first = taken
            for step in self.others.values():
                step()  # so that nothing is set up later
        wait(self.device)
        self._mark = time.perf_counter()


def ours(options: argparse.Namespace, folder: Path, **given: Any) -> DistillModule:
    """The module under test, with a teacher of random weights."""
    spec = BackboneSpec(name=options.teacher, image_size=options.image_size)
    path = folder / "teacher.ckpt"
    if not path.exists():
        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
        trainer.strategy.connect(TeacherModule(5, backbone=spec))
        trainer.save_checkpoint(path)
    student = BackboneSpec(name=options.student, image_size=options.image_size)
    return DistillModule(5, teacher_ckpt=str(path), student=student, optim=OptimSpec(lr=1e-5), **given)


def set_up(module: DistillModule) -> DistillModule:
    """Gives a module its teacher and projectors, without a fit."""
    module.setup("fit")
    return module


def fit(module: DistillModule, batch: int, options: argparse.Namespace, watch: pl.Callback, folder: Path) -> None:
    """Fits as the command line does, but for its loader: metrics, logging, optimiser, schedule."""
    trainer = pl.Trainer(
        accelerator=options.device,
        devices=1,
        precision="bf16-mixed",
        max_epochs=1,
        logger=pl.loggers.CSVLogger(str(folder), name="fit", version=str(batch)),
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[watch],
    )
    trainer.fit(module, OneBatch(batch, options.image_size, options.rounds + 1))


def timed(step: Step, device: str) -> float:
    """Seconds of one step, to its last kernel."""
    wait(device)
    start = time.perf_counter()
    step()
    wait(device)
    return time.perf_counter() - start


def difference(module: DistillModule, parts: Parts) -> float:
    """Compares the fast way with the plain one on the trained module: the largest relative difference of a term."""
    set_up(module.to(parts.device).train())
    assert module.staff is not None
    module.staff.to(module.device, torch.float32)
    fast = compiled.FastPath(module, cuda_graphs=parts.recorded)
    batch = (*parts.batches()(), module.objective.weights(0, module.device))
    with parts.autocast():
        plain, _ = module.distil(*batch)
        quick, _ = fast(module.distil, *batch)
    pairs = zip((plain.total, *plain.values), (quick.total, *quick.values), strict=True)
    found = [float((one - other).abs().detach() / one.abs().detach()) for one, other in pairs]
    fast.close()
    return max(found)


def memory(options: argparse.Namespace, batch: int) -> list[str]:
    """Compares peaks of processes of their own: ours, and student training plus what a teacher adds."""
    found: dict[str, dict[str, float]] = {}
    for side in ("fast", "plain", "student", "teacher"):
        words = [sys.executable, __file__, "--memory_of", side, "--batch", str(batch), "--device", options.device]
        words += ["--image_size", str(options.image_size), "--teacher", options.teacher, "--student", options.student]
        done = subprocess.run(words, capture_output=True, text=True, check=False)
        if done.returncode:
            return [f"batch {batch}, memory: {side} failed: {done.stderr.strip().splitlines()[-1]}"]
        found[side] = json.loads(done.stdout.splitlines()[-1])
    notes = []
    for kind in found["fast"]:
        limit = found["student"][kind] + found["teacher"][kind]
        for side in ("fast", "plain"):
            ratio = found[side][kind] / limit
            notes.append(
                f"batch {batch}, memory {kind}: ours, {side}, {found[side][kind]:.2f} GiB, {ratio:.2f} times student "
                f"training {found['student'][kind]:.2f} + teacher {found['teacher'][kind]:.2f}"
            )
            if options.device == "cuda":
                met = "met" if ratio <= MEMORY_TARGET else "NOT MET"
                notes[-1] += f"; at most {MEMORY_TARGET}: {met}"
    return notes


def peaks(options: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Runs one side alone for a few steps; returns its peaks in GiB."""
    (batch,) = options.batch
    if options.memory_of in ("fast", "plain"):
        options.rounds = 4
        module = ours(options, folder, compile=options.memory_of == "fast")
        fit(module, batch, options, pl.Callback(), folder)
    else:
        parts = Parts(options.teacher, options.student, options.image_size, batch, options.device)
        step = student_alone(parts) if options.memory_of == "student" else parts.teacher_forward()
        for _ in range(5):
            step()
    if options.device == "cpu":
        return {"resident": peak_memory() / GIB}
    return {"allocated": torch.cuda.max_memory_allocated() / GIB, "reserved": torch.cuda.max_memory_reserved() / GIB}


def _device(options: argparse.Namespace) -> str:
    if options.device == "cpu":
        return "on a CPU, without a compiler: a trial of the code, no measurement"
    found = torch.cuda.get_device_properties(0)
    return f"{found.name}, {found.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"


def _options() -> argparse.Namespace:
    parser = arguments(__doc__ or "")
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 256])
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--teacher", default="swin_tiny_patch4_window7_224")
    parser.add_argument("--student", default="convnext_tiny")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help=argparse.SUPPRESS)
    parser.add_argument("--memory_of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.rounds = 200 if options.full else 3 if options.device == "cpu" else 40
    return options


if __name__ == "__main__":
    start = time.perf_counter()
    main()
    if "--memory_of" not in sys.argv:
        print(f"{time.perf_counter() - start:.0f} s in all")
