"""A callback that tells when the phases of a fit begin and end, in seconds by the clock and of the processor."""

import json
import os
import time
from typing import Any

import lightning.pytorch as pl
import torch

from kd_convnext.training.pace import StepClock

TOLD = "watched "
"""What the line begins with that holds the account of a fit, as JSON."""

Moment = tuple[float, float]
"""Seconds by the clock, and of the processor by this process and those it has started and awaited."""


def moment() -> Moment:
    """Returns now."""
    used = os.times()
    return time.time(), used.user + used.system + used.children_user + used.children_system


class Watch(pl.Callback):
    """Prints one line at the end of a fit: its moments, steps, wait for data and peak GPU memory."""

    def __init__(self, name: str = "fit") -> None:
        """Begins empty.

        Args:
            name: What the fit is called in its line.
        """
        self.name, self.clock = name, StepClock()
        self.moments: dict[str, Moment] = {}
        self.epochs: list[tuple[Moment, Moment]] = []
        self.validations: list[tuple[Moment, Moment]] = []
        self.images = 0

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Begins: teachers are loaded and asked after this."""
        self.moments.setdefault("setup", moment())

    def on_train_epoch_start(self, *_: Any) -> None:
        """Begins an epoch."""
        self._begun = moment()
        self.moments.setdefault("first", self._begun)
        self.clock.ask()

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, _: int) -> None:
        """Ends the wait for a batch."""
        self.images += len(batch["image"])
        self.clock.start()

    def on_train_batch_end(self, *_: Any) -> None:
        """Begins the wait for the next."""
        self.clock.end()

    def on_validation_start(self, *_: Any) -> None:
        """Begins judging."""
        self._judged = moment()

    def on_validation_end(self, trainer: pl.Trainer, _: pl.LightningModule) -> None:
        """Ends judging."""
        if not trainer.sanity_checking:
            self.validations.append((self._judged, moment()))
        self.clock.ask()

    def on_train_epoch_end(self, *_: Any) -> None:
        """Ends an epoch, with its validation."""
        self.epochs.append((self._begun, moment()))

    def on_fit_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Tells."""
        cuda = module.device.type == "cuda"
        told: dict[str, Any] = {"name": self.name, **self.moments, "end": moment()}
        told |= {"epochs": self.epochs, "validations": self.validations}
        told |= {"steps": self.clock.steps, "images": self.images, "wait": self.clock.wait_share}
        told |= {"peak": torch.cuda.max_memory_allocated() / 2**30 if cuda else None}
        print(TOLD + json.dumps(told), flush=True)
