"""Begins averages of weights anew, where a module gets parameters after they were begun."""

import lightning.pytorch as pl
from lightning.pytorch.callbacks import WeightAveraging


def average_again(module: pl.LightningModule) -> None:
    """Lets callbacks that average weights copy a module once more.

    They copy it before its `setup`, and pair parameters by their order: what `setup` adds would be paired wrongly.

    Args:
        module: Within its `setup` for a fit.
    """
    for callback in module.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.setup(module.trainer, module, "fit")
