"""Shows the progress of a fit with the time spent waiting for data."""

import sys
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks.progress.tqdm_progress import TQDMProgressBar

from kd_convnext.common.console import duration, say
from kd_convnext.training.pace import StepClock, batches_done, batches_left

_VALUES_EVERY = 0.2
"""Seconds between two looks at what the bar shows: each waits for a GPU's queue."""


class DataWaitBar(TQDMProgressBar):
    """Lightning's bar with ``data_wait`` (share of the epoch spent waiting for it) and ``left`` (of the fit).

    What is written into a file has a line for each epoch instead.

    A ``data_wait`` of more than a few percent says that the machine could train faster with packed crops, the quick
    augmentation, or more ``num_workers``. On a GPU work is queued: the wait is then an upper limit.
    """

    def __init__(self, refresh_rate: int = 1, leave: bool = False) -> None:
        """Sets how often the bar is drawn.

        Args:
            refresh_rate: Batches between two updates; 0 turns the bar off, in a file too.
            leave: Keep the bar of each finished epoch.
        """
        super().__init__(refresh_rate=refresh_rate, leave=leave)
        self._clock = StepClock()
        self._begun, self._first_batch = 0.0, 0
        self._looked, self._values = 0.0, dict[str, int | str | float | dict[str, float]]()

    @property
    def is_enabled(self) -> bool:
        """Returns whether bars are drawn: on a terminal or in a notebook, a file would get each of their states."""
        return super().is_enabled and (sys.stdout.isatty() or "ipykernel" in sys.modules)

    def on_train_start(self, *args: Any) -> None:
        """Starts the clock of the whole fit, after the sanity check."""
        super().on_train_start(*args)
        self._begun, self._first_batch = time.perf_counter(), batches_done(self.trainer)

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Starts the epoch's clock."""
        super().on_train_epoch_start(trainer, *args)
        self._clock = StepClock()

    def on_train_batch_start(self, *args: Any) -> None:
        """Stops timing the wait for a batch."""
        super().on_train_batch_start(*args)
        self._clock.start()

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Stops timing a step."""
        self._clock.end()
        super().on_train_batch_end(*args, **kwargs)
        self._clock.ask()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Shows the epoch's values, in a file as a line."""
        # Lightning merges the processes' values where they are first read. Its bar reads them in the first process
        # alone, which then waits for the others while these wait for it in the module's own hook.
        _ = trainer.progress_bar_metrics
        self._looked = 0.0
        super().on_train_epoch_end(trainer, pl_module)
        if super().is_enabled and not self.is_enabled:
            values = (f"{name}={_short(value)}" for name, value in self.get_metrics(trainer, pl_module).items())
            say(trainer, f"Epoch {trainer.current_epoch}: {', '.join(values)}")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ends the bar of ``validate`` before its results are printed: each line would draw it again."""
        if trainer.state.fn == "validate":
            self.val_progress_bar.close()

    def on_test_epoch_end(self, *args: Any) -> None:
        """Ends the bar before the results are printed."""
        self.test_progress_bar.close()

    def on_predict_epoch_end(self, *args: Any) -> None:
        """Ends the bar before the results are printed."""
        self.predict_progress_bar.close()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Excludes validation from the timing."""
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


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
