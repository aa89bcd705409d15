"""Computes the factor on a term's weight in each epoch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kd_convnext.errors import ConfigError, Finding


@dataclass(frozen=True)
class WeightSchedule:
    """Switches a term on and off by epochs, with linear ramps.

    Attributes:
        start: First epoch (from 0) in which the term counts.
        rise: Epochs over which its factor climbs from 0 to 1 after ``start``: 0, 1/rise, 2/rise, ...
        stop: First epoch in which the factor has reached ``end``; None: never.
        fall: Epochs before ``stop`` over which it falls linearly from 1 to ``end``.
        end: Factor from ``stop`` on, 0 or more.
    """

    start: int = 0
    rise: int = 0
    stop: int | None = None
    fall: int = 0
    end: float = 0.0

    def __post_init__(self) -> None:
        """Checks the epochs.

        Raises:
            ConfigError: A number is negative, or the end lies before the beginning.
        """
        numbers = [self.start, self.rise, self.fall, self.end, self.stop or 0]
        if not all(math.isfinite(number) and number >= 0 for number in numbers):
            raise ConfigError(Finding("schedule", f"{self} has a negative number", "All must be 0 or more."))
        if self.stop is not None and self.stop < self.start:
            what = f"it stops in epoch {self.stop}, before it starts in {self.start}"
            raise ConfigError(Finding("schedule", what, "Let stop be start or later."))

    def factor(self, epoch: int) -> float:
        """Returns what the weight is multiplied by.

        Args:
            epoch: From 0.
        """
        if epoch < self.start:
            return 0.0
        if self.stop is not None and epoch >= self.stop:
            return self.end
        risen = min(1.0, (epoch - self.start) / self.rise) if self.rise else 1.0
        left = 1.0
        if self.stop is not None and self.fall:
            left = min(1.0, (self.stop - epoch) / self.fall)
        return risen * (self.end + (1.0 - self.end) * left)


def schedule_of(value: Any) -> WeightSchedule | None:
    """Returns a schedule from what a configuration or a checkpoint gives: one, its fields by name, or None."""
    return WeightSchedule(**value) if isinstance(value, Mapping) else value
