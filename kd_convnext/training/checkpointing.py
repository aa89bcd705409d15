"""Checkpoints of a fit: the best network, and the newest state to resume from, for a small share of the time."""

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO


class RunCheckpoint(ModelCheckpoint):
    """``best.ckpt`` where validation was best, and ``last.ckpt``, the newest state.

    Lightning's own ``save_last`` writes a second copy of the best and nothing in between: a fit that is resumed would
    go back to its best epoch.
    """

    def __init__(self, save_last: bool = True, last_share: float = 0.01, **kwargs: Any) -> None:
        """Sets what is written.

        Args:
            save_last: Write ``last.ckpt`` too, with the optimiser's state, after an epoch and at the end.
            last_share: Of the time, what writing ``last.ckpt`` may take. It is written after every epoch, as long as
                that suffices, else less often; the first and the one at the end always.
            **kwargs: As Lightning's ``ModelCheckpoint``.
        """
        super().__init__(save_last=False, **kwargs)
        self.newest, self.last_share = save_last, last_share
        self._written: float | None = None
        self._took = 0.0
        self._step = -1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the best, if it is; then the newest, if it is time."""
        super().on_train_epoch_end(trainer, pl_module)
        # One clock decides for all processes.
        due = self._written is None or (time.monotonic() - self._written) * self.last_share >= self._took
        self._write(trainer, due=trainer.strategy.broadcast(due))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the end, and waits for what is still being written: it may be read from here on."""
        super().on_train_end(trainer, pl_module)
        self._write(trainer, due=self._step != trainer.global_step)
        trainer.strategy.checkpoint_io.teardown()

    def _write(self, trainer: Trainer, *, due: bool) -> None:
        if not (due and self.newest) or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert self.dirpath is not None  # since setup
        self.last_model_path = str(Path(self.dirpath) / f"{self.CHECKPOINT_NAME_LAST}{self.FILE_EXTENSION}")
        begun = time.monotonic()
        trainer.save_checkpoint(self.last_model_path, weights_only=False)
        self._written, self._step = time.monotonic(), trainer.global_step
        self._took = self._written - begun


class BackgroundWriter(AsyncCheckpointIO):
    """Writes checkpoints in a thread, from copies, while training goes on.

    One at a time: on a slow disk copies must not pile up. What fails there is raised by the next call, at the latest
    at the end of the fit.
    """

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Waits for the one before, then copies and begins to write."""
        self.teardown()
        super().save_checkpoint(*args, **kwargs)

    def remove_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Waits until the file that takes its place is whole, then removes the old one."""
        self.teardown()
        super().remove_checkpoint(*args, **kwargs)
