"""Averages the weights of a fit by a moving average (EMA) that suits short fits too."""

from typing import Any

import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from kd_convnext.errors import ConfigError, Finding


class MovingAveraging(WeightAveraging):
    """Averages weights after every step, by a decay that rises with the steps, to ``decay`` at most.

    After the first step it is the weights themselves. After step n > 0 (from 0) it keeps
    ``min(decay, (1 + n) / (10 + n))`` of itself, as TensorFlow's ``ExponentialMovingAverage`` with ``num_updates``
    does. With a constant decay, as of Lightning's ``EMAWeightAveraging``, a fit of 120 steps ends with three tenths of
    its first step's weights at .99.
    Validation judges the average; ``best.ckpt`` holds it.
    """

    def __init__(self, decay: float = 0.99, use_buffers: bool = True) -> None:
        """Sets how far the average reaches back.

        Args:
            decay: Share of itself that the average keeps at a step of a long fit, 0 to below 1.
            use_buffers: Average running statistics too.

        Raises:
            ConfigError: The decay is none.
        """
        if not 0 <= decay < 1:
            remedy = "Use for example 0.99: an average over about a hundred steps."
            raise ConfigError(Finding("MovingAveraging.decay", f"{decay} is not in 0 to below 1", remedy))
        super().__init__(use_buffers=use_buffers, multi_avg_fn=self._approach)
        self.decay = decay
        self._step = 0

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Tells Lightning to update after every step, and takes the step's number."""
        if step_idx is None:
            return False
        self._step = step_idx
        return True

    @torch.no_grad()
    def _approach(self, averages: tuple[Tensor, ...] | list[Tensor], values: Any, _: Any) -> None:
        """Moves averages of one kind of number towards values."""
        if averages[0].is_floating_point():
            kept = min(self.decay, (1 + self._step) / (10 + self._step))
            torch._foreach_lerp_(averages, values, 1 - kept)
        else:  # counters of batches
            torch._foreach_copy_(averages, values)
