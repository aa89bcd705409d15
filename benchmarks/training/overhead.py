"""What a fit costs beside its steps: the time to the first one, and checkpoints and logs.

(a) The command ``kd-convnext fit`` in a process of its own, cache filled, to the start of its first training step.
(b) A fit of several epochs in this process: the time inside the callbacks that save, log, draw and print, inside the
loggers, and in judging a validation (without its forward passes), as a share of the whole.
"""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.harness.figures import Figure, Grid, tell
from benchmarks.harness.timing import arguments
from kd_convnext.cli import main as command_line
from kd_convnext.data.drawn.specimens import draw_specimens
from kd_convnext.training.pace import StepClock

SMALL = Path(__file__).resolve().parents[2] / "configs" / "small_cpu"
CLASSES = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")
PAPER_STEPS = 56  # an epoch's
FIRST_STEP = """
import time
from lightning.pytorch import Callback
class Stop(Callback):
    def on_train_batch_start(self, trainer, *_):
        print(f"first step {time.time()}", flush=True)
        trainer.should_stop = True
"""


def main() -> None:
    """Measures and prints."""
    options = arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder = Path(name)
        lesions = dict.fromkeys(CLASSES, 20 if options.full else 8)
        manifest = draw_specimens(folder / "drawn", seed=0, lesions_per_class=lesions)
        data = [f"--data.manifest={manifest}", "--data.cache_dir=cache", "--data.upscaler=bicubic"]
        teacher = fitted(SMALL / "teacher.yaml", [*data, "--trainer.max_epochs=1", "--name=teacher"])
        student = [*data, f"--model.teacher_ckpt={teacher}"]
        small = accounted(SMALL / "student.yaml", [*student, f"--trainer.max_epochs={20 if options.full else 8}"])
        large = accounted(of_paper_size(options.full), student)
        first = [to_first_step(["--config", str(SMALL / "student.yaml"), *student]) for _ in range(3)]
    figures = [Figure("command to first step, small setting", sorted(first)[1], "s", at_most=15)]
    figures += paper_figures("small setting", small, 1)
    # Steps of 4 images there: in proportion on a CPU; on a GPU taken as they are, the worst that can be.
    figures += paper_figures("ConvNeXt-T", large, 1 if torch.cuda.is_available() else 8)
    grids = [grid("Small setting (configs/small_cpu/student.yaml)", small), grid("ConvNeXt-T at 224 px", large)]
    notes = [
        f"runs to the first step: {', '.join(f'{seconds:.1f}' for seconds in first)} s",
        "once: split, environment, previews, curves; in a fit of the paper's 100 epochs they count a hundredth",
    ]
    tell("Overhead", figures, grids, notes, options.json)


def of_paper_size(full: bool) -> Path:
    """Writes a setting with ConvNeXt-T as the student, of few and small steps: saving costs what it always does."""
    path = Path("convnext_tiny.yaml")
    path.write_text(
        f"""
trainer: {{max_epochs: {8 if full else 4}, limit_train_batches: 2, log_every_n_steps: 10}}
model:
  class_path: kd_convnext.DistillModule
  init_args: {{student: {{name: convnext_tiny, image_size: 224}}}}
data: {{image_size: 224, batch_size: 4}}
"""
    )
    return path


def paper_figures(name: str, account: dict[str, float], larger: float) -> list[Figure]:
    """Puts what steps and epochs cost beside the work into the paper's epoch of 56 steps.

    Args:
        name: Of the setting.
        account: Of a fit.
        larger: How much longer a step of 32 images takes than the steps of the fit.
    """
    epoch = sum(account[part] for part in EVERY_EPOCH) / account["epochs"] + PAPER_STEPS * account[EVERY_STEP]
    steps = PAPER_STEPS * (account["step"] * larger)
    return [
        Figure(f"{name}: saving, logging, judging, in an epoch of 56 steps", epoch * 1e3, "ms"),
        Figure(f"{name}: share of such an epoch (without validation)", 100 * epoch / (epoch + steps), "%", at_most=2),
        Figure(f"{name}: a step must last at least, for 2 %", epoch / 0.02 / PAPER_STEPS * 1e3, "ms"),
    ]


# ---- (a)


def to_first_step(words: list[str]) -> float:
    """Runs the command in a process of its own; returns the seconds from its start to its first step."""
    Path("stop_at_first_step.py").write_text(FIRST_STEP)
    words = ["fit", *words, "--trainer.callbacks+=stop_at_first_step.Stop", "--trainer.max_epochs=1"]
    words += ["--trust", "stop_at_first_step"]
    command = [sys.executable, "-m", "kd_convnext.cli", *words]
    start = time.time()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", *sys.path])}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    (line,) = (line for line in done.stdout.splitlines() if "first step" in line)
    return float(line.split()[-1]) - start


# ---- (b)

EVERY_EPOCH, EVERY_STEP = ("saving", "logging", "progress bar", "judging"), "each step"


def accounted(config: Path, words: list[str]) -> dict[str, float]:
    """Fits; returns the seconds of each account (of one step: "each step"), of the fit and a step, and the epochs."""
    book = Account()
    with book.opened():
        fitted(config, words)
    found = {**book.seconds, "fit": book.fit, "epochs": float(book.epochs), "step": book.step}
    return {**found, EVERY_STEP: book.seconds[EVERY_STEP] / (book.steps - book.epochs)}


def fitted(config: Path, words: list[str]) -> Path:
    """Runs ``kd-convnext fit``; returns its best checkpoint."""
    with contextlib.redirect_stdout(sys.stderr):
        if command_line(["fit", "--config", str(config), *words]):
            raise SystemExit(f"kd-convnext fit --config {config} {' '.join(words)} failed")
    return max(Path("runs").glob("*/*/checkpoints/best.ckpt"), key=lambda path: path.stat().st_mtime).absolute()


class Account:
    """Seconds inside chosen functions, each counted where it is entered from outside of all others."""

    def __init__(self) -> None:
        """Begins empty."""
        self.seconds: Counter[str] = Counter()
        self.fit, self.epochs, self.steps = 0.0, 0, 0
        self._inside, self._begun = False, 0.0
        self._worked: list[float] = []

    @property
    def step(self) -> float:
        """Median seconds of a training step, without its wait for data."""
        return statistics.median(self._worked)

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Watches every fit within the block."""
        from lightning.pytorch import Trainer
        from lightning.pytorch.loggers import CSVLogger

        from kd_convnext.modules.classifier import ClassifierModule
        from kd_convnext.training import command as training
        from kd_convnext.training import header as progress
        from kd_convnext.training import record as callbacks
        from kd_convnext.training.checkpointing import RunCheckpoint

        accounts: list[tuple[str, type]] = [("saving", RunCheckpoint), ("progress bar", progress.DataWaitBar)]
        accounts += [("once", callbacks.RunRecord), ("once", callbacks.AugmentationPreview)]
        accounts += [("once", callbacks.CurveFigures), ("once", training.ConfigRecord), ("once", progress.RunHeader)]
        with contextlib.ExitStack() as stack:
            for name, kind in accounts:
                for hook in [hook for hook in dir(kind) if hook.startswith("on_")]:
                    at_end = kind is RunCheckpoint and hook == "on_train_end"
                    of_step = hook.startswith("on_train_batch")
                    self._watch(stack, kind, hook, "once" if at_end else EVERY_STEP if of_step else name)
            for method in ("log_metrics", "save", "finalize"):
                self._watch(stack, CSVLogger, method, "logging")
            self._watch(stack, ClassifierModule, "log_training", EVERY_STEP)
            self._watch(stack, ClassifierModule, "on_train_epoch_end", "logging")
            self._watch(stack, ClassifierModule, "on_validation_epoch_end", "judging")
            stack.enter_context(mock.patch.object(Trainer, "fit", self._timed_fit(Trainer.fit)))
            # The bar's clock, and the header's in the first steps: a median over both.
            stack.enter_context(mock.patch.object(StepClock, "end", self._timed_step()))
            yield

    def _watch(self, stack: contextlib.ExitStack, kind: type, method: str, name: str) -> None:
        inner: Callable[..., Any] = getattr(kind, method)

        @wraps(inner)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return inner(*args, **kwargs)
            # The last step of an epoch draws the bar: that comes once an epoch, however many steps there are.
            last = name == EVERY_STEP and _trainer_of(args).is_last_batch
            self._inside, start = True, time.perf_counter()
            try:
                return inner(*args, **kwargs)
            finally:
                self._inside = False
                self.seconds["progress bar" if last else name] += time.perf_counter() - start

        stack.enter_context(mock.patch.object(kind, method, watched))

    def _timed_step(self) -> Callable[..., None]:
        inner = StepClock.end

        def end(clock: StepClock) -> None:
            before = clock.worked
            inner(clock)
            self._worked.append(clock.worked - before)

        return end

    def _timed_fit(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(inner)  # the command line reads the signature
        def fit(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            inner(trainer, *args, **kwargs)
            self.fit += time.perf_counter() - start
            self.epochs += trainer.current_epoch
            self.steps += trainer.global_step

        return fit


def _trainer_of(hook: tuple[Any, ...]) -> Any:
    """Finds the trainer in the arguments of a module's method or of a callback's hook."""
    return getattr(hook[0], "trainer", None) or hook[1]


def grid(title: str, account: dict[str, float]) -> Grid:
    """Shows one account."""
    rows = [
        [name, account[name], account[name] / account["epochs"] * 1e3, f"{account[name] / account['fit']:.2%}"]
        for name in (*EVERY_EPOCH, "once")
    ]
    rows.append([EVERY_STEP, account[EVERY_STEP], "", ""])
    rows.append(["whole fit", account["fit"], account["fit"] / account["epochs"] * 1e3, "100%"])
    return Grid(f"{title}, {account['epochs']:.0f} epochs", ("", "s", "ms an epoch", "share"), rows)


if __name__ == "__main__":
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
    start = time.perf_counter()
    main()
    print(f"{time.perf_counter() - start:.0f} s in all")
