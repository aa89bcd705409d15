"""Refuses checkpoints that do not fit the photographs, before any crop is made: super-resolution takes long."""

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.modules.guard import check_classes
from kd_convnext.modules.student import DistillModule


def refuse_misfits(data: object, model: pl.LightningModule, known: Sequence[str], *, fitting: bool) -> None:
    """Compares what checkpoints know with the manifest and its division.

    Args:
        data: The data module; another than ours passes.
        model: As configured, without a checkpoint's weights.
        known: Classes of the checkpoint that is judged or goes on; empty without one.
        fitting: Whether the model's teachers are needed.

    Raises:
        CheckpointError: The checkpoint, or a teacher, knows other classes.
        LeakError: A teacher has seen what the student is judged by.
        KDConvNeXtError: A teacher cannot be used, or the data not be read.
    """
    if not isinstance(data, SpecimenDataModule):
        return
    if known:
        check_classes(known, len(known), data)
    if fitting and isinstance(model, DistillModule):
        with isolate_rng():  # building networks draws numbers, which the fit is to draw as without this check
            model.check_teachers(data)
