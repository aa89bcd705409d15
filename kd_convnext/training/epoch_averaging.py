"""Averages the weights of the last epochs of a fit (SWA); validation judges the average, and checkpoints keep it."""

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging

from kd_convnext.errors import ConfigError, Finding


class EpochAveraging(WeightAveraging):
    """Averages the weights at the ends of epochs, all alike (SWA; Izmailov et al., 2018).

    Lightning's ``StochasticWeightAveraging`` averages when all is over: no epoch is judged by the average, and no
    checkpoint holds it. Here ``best.ckpt`` is the best average. Give the last epochs a learning rate that does not
    vanish, such as ``--model.optim.schedule constant``.
    """

    def __init__(self, start_epoch: int, use_buffers: bool = True) -> None:
        """Sets where the average begins.

        Args:
            start_epoch: First epoch, from 0, whose end is in the average; until then the network is its own.
            use_buffers: Average running statistics too.

        Raises:
            ConfigError: The epoch is negative.
        """
        if start_epoch < 0:
            what = f"it cannot begin in epoch {start_epoch}"
            raise ConfigError(Finding("EpochAveraging.start_epoch", what, "Use for example three quarters of them."))
        super().__init__(use_buffers=use_buffers)
        self.start_epoch = start_epoch

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """Tells Lightning that no step and no epoch updates by itself: `on_train_batch_end` does."""
        return False

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the weights at the end of an epoch, before validation; until there is an average, copies each step's."""
        assert self._average_model is not None
        if trainer.current_epoch <= self.start_epoch:
            self._average_model.n_averaged.zero_()  # the next to come is the first
        elif not trainer.is_last_batch:
            return
        self._average_model.update_parameters(pl_module)
