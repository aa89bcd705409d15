"""What a fit says about itself: what runs where, how long it takes, what waits for data, what comes next."""

import shlex
import sys
import time
from math import nan
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm, TQDMProgressBar

from kd_convnext.machine import machine_line
from kd_convnext.pace import StepClock, batches_done, batches_left, duration, validation_batches_left
from kd_convnext.runs import RunFolder

LONG_ON_CPU = 2 * 3600.0
"""Seconds above which a fit on a CPU comes with a warning."""

_LOG_REFRESH = 25
_VALUES_EVERY = 0.2
"""Seconds between two looks at what the bar shows: each waits for a GPU's queue."""

_FORWARD = 1 / 3
"""Share of a training step that is its forward pass, where it was not measured (8.98 of 26.7 GFLOPs for ConvNeXt-T)."""


class DataWaitBar(TQDMProgressBar):
    """Lightning's bar with ``data_wait`` (share of the epoch spent waiting for it) and ``left`` (of the fit).

    A ``data_wait`` of more than a few percent says that the machine could train faster with packed crops, the quick
    augmentation, or more ``num_workers``. On a GPU work is queued: the wait is then an upper limit.
    """

    def __init__(self, refresh_rate: int | None = None, leave: bool = False) -> None:
        """Sets how often the bar is drawn.

        Args:
            refresh_rate: Batches between two updates; 0 turns the bar off; None is 1 on a terminal and 25 in
                a file.
            leave: Keep the bar of each finished epoch.
        """
        rate = (1 if sys.stdout.isatty() else _LOG_REFRESH) if refresh_rate is None else refresh_rate
        super().__init__(refresh_rate=rate, leave=leave)
        self._clock = StepClock()
        self._begun, self._first_batch = 0.0, 0
        self._looked, self._values = 0.0, dict[str, int | str | float | dict[str, float]]()

    def on_train_start(self, *args: Any) -> None:
        """Starts the clock of the whole fit, after the sanity check."""
        super().on_train_start(*args)
        self._begun, self._first_batch = time.perf_counter(), batches_done(self.trainer)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Starts the epoch's clock."""
        super().on_train_epoch_start(trainer, *args)
        self._clock = StepClock()

    def on_train_batch_start(self, *args: Any) -> None:
        """The batch has come."""
        super().on_train_batch_start(*args)
        self._clock.start()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """The step is done."""
        self._clock.end()
        super().on_train_batch_end(*args, **kwargs)
        self._clock.ask()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the epoch's values."""
        # Lightning merges the processes' values where they are first read. Its bar reads them in the first process
        # alone, which then waits for the others while these wait for it in the module's own hook.
        _ = trainer.progress_bar_metrics
        self._looked = 0.0
        super().on_train_epoch_end(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validation is neither waiting nor stepping."""
        super().on_validation_end(trainer, pl_module)
        self._clock.ask()

    def get_metrics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Adds ``data_wait`` and ``left`` to what the module shows in the bar."""
        if time.perf_counter() - self._looked < _VALUES_EVERY:
            return self._values
        metrics = self._values = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        loss = getattr(pl_module, "latest_loss", None)
        if trainer.training and loss is not None:
            metrics["train/loss_step"] = float(loss)
        done = batches_done(trainer) - self._first_batch
        if trainer.training and done > 0:
            metrics["data_wait"] = f"{self._clock.wait_share:.0%}"
            pace = (time.perf_counter() - self._begun) / done
            left = pace * batches_left(trainer)
            if left < float("inf"):
                metrics["left"] = duration(left)
        self._looked = time.perf_counter()
        return metrics


class RunHeader(Callback):
    """Says at the start what runs where and how long it will take, and at the end what to type next."""

    def __init__(
        self, small_config: str | None = None, distill_config: str | None = None, measured_steps: int = 2
    ) -> None:
        """Sets what is named.

        Args:
            small_config: The small CPU setting of the same job, named when a fit on a CPU will take over two
                hours; None names its folder only.
            distill_config: For a teacher: the config of the student it can teach; None says nothing of it.
            measured_steps: Steps after the first (which warms up) whose time is measured for the estimate.
        """
        super().__init__()
        self.small_config = small_config
        self.distill_config = distill_config
        self.measured_steps = measured_steps
        self._clock: StepClock | None = None
        self._validation_batch: float | None = None
        self._validation_begun = 0.0

    @property
    def measured(self) -> tuple[float, float]:
        """Seconds of a training step, with its wait for data, and of a validation batch; NaN before the first."""
        clock = self._clock
        step = (clock.waited + clock.worked) / clock.steps if clock and clock.steps else nan
        return step, step * _FORWARD if self._validation_batch is None else self._validation_batch

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints device, precision, size and folder, and what is made of the machine."""
        self._clock, self._validation_batch = None, None
        say(trainer, header_line(trainer, pl_module))
        say(trainer, machine_line(trainer, pl_module))

    def on_validation_batch_start(self, trainer: Trainer, *args: Any) -> None:
        """Measures a validation batch in the sanity check."""
        if trainer.sanity_checking:
            self._validation_begun = time.perf_counter()

    def on_validation_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Keeps the last batch's time: the first one warms up."""
        if trainer.sanity_checking:
            _finish(trainer)
            self._validation_batch = time.perf_counter() - self._validation_begun

    def on_train_epoch_start(self, *args: Any) -> None:
        """Begins to wait for the epoch's first batch."""
        if self._clock:
            self._clock.ask()

    def on_train_batch_start(self, *args: Any) -> None:
        """Ends the wait for a batch."""
        if self._clock:
            self._clock.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: Any) -> None:
        """Measures the steps after the first, then says how long the fit will take."""
        if self._clock is None:
            _finish(trainer)
            self._clock = StepClock()
        elif self._clock.steps < self.measured_steps:
            _finish(trainer)
            self._clock.end()
            if self._clock.steps == self.measured_steps:
                self._estimate(trainer, pl_module, self._clock)

    def on_validation_end(self, *args: Any) -> None:
        """Keeps validation out of the steps' time."""
        if self._clock:
            self._clock.ask()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prints the next commands, if the fit has left a checkpoint."""
        best = getattr(trainer.checkpoint_callback, "best_model_path", "")
        if best:
            config = RunFolder(Path(trainer.default_root_dir)).config
            for line in next_commands(Path(best), config, self.distill_config):
                say(trainer, line)

    def _estimate(self, trainer: Trainer, module: LightningModule, clock: StepClock) -> None:
        step = (clock.waited + clock.worked) / clock.steps
        batch = self._validation_batch or step * _FORWARD
        seconds = batches_left(trainer) * step + validation_batches_left(trainer) * batch
        seconds += _thawed_batches_left(trainer, module) * step * (1 / _FORWARD - 1)
        if seconds < float("inf"):
            on_cpu = trainer.strategy.root_device.type == "cpu"
            for line in estimate_lines(seconds, step, on_cpu=on_cpu, small_config=self.small_config):
                say(trainer, line)


def header_line(trainer: Trainer, module: LightningModule) -> str:
    """Says what is fitted, where, and into which folder.

    Args:
        trainer: At the start of a fit.
        module: What is fitted.

    Returns:
        One line: class, parameters (those that train), device, precision, processes, folder.
    """
    count = sum(parameter.numel() for parameter in module.parameters()) / 1e6
    trained = sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad) / 1e6
    folder = shown(Path(trainer.default_root_dir))
    return (
        f"Fitting {type(module).__name__} ({count:.2f} M parameters, {trained:.2f} M of them train) on "
        f"{device_name(trainer)}, precision {trainer.precision}, folder {folder}"
    )


def device_name(trainer: Trainer) -> str:
    """Names the device of this process, and how many processes there are if more than one.

    Args:
        trainer: Any trainer.

    Returns:
        Such as ``CPU (2 threads)`` or ``NVIDIA H200 x 4``.
    """
    device = trainer.strategy.root_device
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif device.type == "cpu":
        name = f"CPU ({torch.get_num_threads()} threads)"
    else:
        name = device.type.upper()
    return name if trainer.world_size == 1 else f"{name} x {trainer.world_size}"


def estimate_lines(seconds: float, step_seconds: float, *, on_cpu: bool, small_config: str | None) -> list[str]:
    """Says how long a fit will take, and warns where a CPU is too slow for it.

    Args:
        seconds: Expected for the rest of the fit.
        step_seconds: Measured time of a step, with its wait for data.
        on_cpu: The fit runs on a CPU.
        small_config: See ``RunHeader``.

    Returns:
        One line, or two with the warning.
    """
    lines = [f"The whole fit is expected to take {duration(seconds)} ({step_seconds:.3g} s a step, measured)"]
    if on_cpu and seconds > LONG_ON_CPU:
        small = f"kd-convnext fit --config {small_config}" if small_config else "see configs/small_cpu/"
        lines.append(
            f"Warning: this setting is meant for a GPU; on this CPU it takes {duration(seconds)}. "
            f"The same pipeline in a small setting takes minutes: {small}"
        )
    return lines


def next_commands(ckpt_path: Path, config: Path, distill_config: str | None) -> list[str]:
    """Says what to type after a fit.

    Args:
        ckpt_path: The fit's best checkpoint.
        config: The fit's resolved configuration.
        distill_config: See ``RunHeader``.

    Returns:
        A heading and one command a line, quoted for a POSIX shell.
    """
    checkpoint = shlex.quote(shown(ckpt_path))
    lines = ["Next:", f"  kd-convnext test --config {shlex.quote(shown(config))} --ckpt_path {checkpoint}"]
    if distill_config:
        # The student's configuration laid over this run's: same photographs, split and crops.
        both = f"--config {shlex.quote(shown(config))} --config {shlex.quote(distill_config)}"
        name = shlex.quote(Path(distill_config).stem)
        lines.append(f"  kd-convnext fit {both} --name {name} --model.teacher_ckpt {checkpoint}")
    return lines


def shown(path: Path) -> str:
    """Writes a path as short as it can be typed here: relative if it lies below the current folder."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def say(trainer: Trainer, line: str) -> None:
    """Prints a line from the first process, without tearing a progress bar.

    Args:
        trainer: Whose process asks.
        line: The text.
    """
    if trainer.is_global_zero:
        Tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()


def _thawed_batches_left(trainer: Trainer, module: LightningModule) -> float:
    """Counts the batches to come once the body, held still now, learns: their steps go back through it too."""
    head_epochs = int(getattr(module, "head_epochs", 0))
    if not head_epochs or all(parameter.requires_grad for parameter in module.parameters()):
        return 0.0
    with_head_alone = max(0.0, head_epochs * trainer.num_training_batches - batches_done(trainer))
    return max(0.0, batches_left(trainer) - with_head_alone)


def _finish(trainer: Trainer) -> None:
    """Waits for the device's queue, so that a clock reads finished work."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize(trainer.strategy.root_device)
