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
        """Adds the weights at the end of an epoch, before validation."""
        assert self._average_model is not None
        if trainer.current_epoch <= self.start_epoch:
            self._average_model.n_averaged.zero_()  # the next to come is the first
        if trainer.is_last_batch and trainer.current_epoch >= self.start_epoch:
            self._average_model.update_parameters(pl_module)

    def on_validation_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Lets validation judge the average or, until there is one, the network as it is."""
        self._follow(pl_module)
        super().on_validation_epoch_start(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Keeps the average or, until there is one, the network as it is."""
        self._follow(pl_module)
        super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Ends with the average or, where there is none, with the network as it is."""
        self._follow(pl_module)
        super().on_train_end(trainer, pl_module)

    def _follow(self, pl_module: pl.LightningModule) -> None:
        """Copies the network where it is looked at and there is no average: after each step that would be too dear."""
        average = self._average_model
        if average is not None and not average.n_averaged:
            average.update_parameters(pl_module)
            average.n_averaged.zero_()
