"""Prints the header of a fit: what runs where, how long it takes, what waits for data, the next command."""

import time
from math import nan
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from kd_convnext.common.console import duration, say, shown
from kd_convnext.common.counting import counted
from kd_convnext.common.machine import available_cores, best_precision, bf16_gain
from kd_convnext.common.words import command_line
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.manifest.summary import describe
from kd_convnext.modules.compiled_step import plan_compile
from kd_convnext.runs.folder import RunFolder
from kd_convnext.training.pace import StepClock, batches_done, batches_left, validation_batches_left

LONG_ON_CPU = 2 * 3600.0
"""Seconds above which a fit on a CPU comes with a warning."""


_FORWARD = 1 / 3
"""Share of a training step that is its forward pass, where it was not measured (8.98 of 26.7 GFLOPs for ConvNeXt-T)."""


class RunHeader(Callback):
    """Prints at the start what runs where and how long it will take, and at the end the next commands."""

    def __init__(
        self,
        small_config: str | None = None,
        distill_config: str | None = None,
        measured_steps: int = 2,
        next_steps: bool = True,
        describe_data: bool = True,
    ) -> None:
        """Sets what is named.

        Args:
            small_config: The small CPU setting of the same job, named when a fit on a CPU will take over two
                hours; None names its folder only.
            distill_config: For a teacher: the config of the student it can teach; None says nothing of it.
            measured_steps: Steps after the first (which warms up) whose time is measured for the estimate.
            next_steps: Whether the end says what to type next; not where another fit follows by itself.
            describe_data: Whether the start counts photographs by class and part; not where a fit before has.
        """
        super().__init__()
        self.small_config = small_config
        self.distill_config = distill_config
        self.measured_steps = measured_steps
        self.next_steps = next_steps
        self.describe_data = describe_data
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
        data = getattr(trainer, "datamodule", None)
        if isinstance(data, SpecimenDataModule) and self.describe_data:
            for line in describe(data.manifest, data.split_spec.group_by, data.split):
                say(trainer, line)

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
        """Starts timing the wait for the epoch's first batch."""
        if self._clock:
            self._clock.ask()

    def on_train_batch_start(self, *args: Any) -> None:
        """Stops timing the wait for a batch."""
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
        if best and self.next_steps:
            config = RunFolder(Path(trainer.default_root_dir)).config
            if getattr(getattr(trainer, "datamodule", None), "ignores_labels", False):
                lines = commands_without_labels(Path(best), self.distill_config)
            else:
                lines = next_commands(Path(best), config, self.distill_config)
            for line in lines:
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
    """Returns a line on what is fitted, where, and into which folder.

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
        name = f"CPU ({counted(torch.get_num_threads(), 'thread')})"
    else:
        name = device.type.upper()
    return name if trainer.world_size == 1 else f"{name} x {trainer.world_size}"


def estimate_lines(seconds: float, step_seconds: float, *, on_cpu: bool, small_config: str | None) -> list[str]:
    """Estimates the time of a fit, and warns where a CPU is too slow for it.

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
        small = command_line(["fit"], config=small_config) if small_config else "see configs/small_cpu/"
        lines.append(
            f"Warning: this setting is meant for a GPU; on this CPU it takes {duration(seconds)}. "
            f"The same pipeline in a small setting takes minutes: {small}"
        )
    return lines


def next_commands(ckpt_path: Path, config: Path, distill_config: str | None) -> list[str]:
    """Returns the commands that follow a fit.

    Args:
        ckpt_path: The fit's best checkpoint.
        config: The fit's resolved configuration.
        distill_config: See ``RunHeader``.

    Returns:
        A heading and one command a line, quoted for a POSIX shell.
    """
    checkpoint, own = shown(ckpt_path), shown(config)
    lines = ["Next:", f"  {command_line(['test'], config=own, ckpt_path=checkpoint)}"]
    if distill_config:
        # The student's configuration laid over this run's: same photographs, split and crops.
        words = ["fit", "--config", own, "--config", distill_config]
        options = {"name": Path(distill_config).stem, "model.teacher_ckpt": checkpoint}
        lines.append(f"  {command_line(words, **options)}")
    return lines


def commands_without_labels(ckpt_path: Path, distill_config: str | None) -> list[str]:
    """Returns the commands that follow a fit without labels, which has nothing to be tested on.

    Args:
        ckpt_path: The fit's best checkpoint.
        distill_config: Configuration of a student that may start from it; None where there is none.

    Returns:
        A heading and a command, quoted for a POSIX shell; nothing without a configuration.
    """
    if not distill_config:
        return []
    options = {"data.manifest": "LABELLED.csv", "model.student.weights": shown(ckpt_path)}
    return ["Next, on photographs with labels:", f"  {command_line(['fit'], config=distill_config, **options)}"]


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


def machine_line(trainer: Trainer, module: LightningModule) -> str:
    """Returns a line on the precision, compilation and loader processes of a fit, with the reasons.

    Args:
        trainer: At the start of a fit.
        module: What is fitted.

    Returns:
        One line: cores and GPU, precision, compilation, loader.
    """
    device = trainer.strategy.root_device
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU" if device.type == "cpu" else "GPU"
    cores = available_cores()
    parts = [f"precision {trainer.precision} ({precision_reason(str(trainer.precision), device.type)})"]
    asked = getattr(module, "compile_asked", None)
    if asked is not None:
        parts.append(str(plan_compile(asked, trainer)))
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, SpecimenDataModule):
        crops = "packed crops" if data.loader.packed else "crops from their files"
        parts += [str(data.workers), crops, f"augmentation by {data.augment.engine}"]
        if data.workers.starved and not (data.loader.packed and data.augment.engine == "opencv"):
            parts.append(
                "steps will wait: --data.loader.packed true --data.augment.engine opencv loads several times faster"
            )
    return f"Machine: {counted(cores, 'core')}, {gpu}: {', '.join(parts)}"


def precision_reason(precision: str, device: str) -> str:
    """Says why a precision is used, and where it makes a training slow.

    Args:
        precision: As Lightning names it.
        device: ``cuda``, ``cpu``, or another of torch's names.

    Returns:
        A few words.
    """
    best = best_precision(device)
    if precision == best.value:
        return best.reason
    if device == "cpu" and precision.startswith("bf16"):
        gain = bf16_gain()
        if gain < 1:
            return (
                f"as given; float32 multiplies {1 / gain:.1f} times as fast on this CPU: leave --trainer.precision out"
            )
    return "as given"
