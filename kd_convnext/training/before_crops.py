"""Refuses what does not fit the photographs, before any teacher is trained or crop made: both take long."""

from collections.abc import Sequence

import lightning.pytorch as pl
from lightning.pytorch.utilities.seed import isolate_rng

from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.modules.classifier import ClassifierModule
from kd_convnext.modules.guard import check_classes
from kd_convnext.modules.student import DistillModule


def refuse_misfits(data: object, model: pl.LightningModule, known: Sequence[str], *, fitting: bool) -> None:
    """Compares configuration, start weights and checkpoint with the manifest and its division.

    Args:
        data: The data module; another than ours passes.
        model: As configured, without a checkpoint's weights.
        known: Classes of the checkpoint that is judged or goes on; empty without one.
        fitting: Whether the model is to be trained.

    Raises:
        CheckpointError: The checkpoint knows other classes.
        ConfigError: The model cannot be trained on these data.
        LeakError: The start weights have seen what the model is judged by.
        KDConvNeXtError: The data cannot be read.
    """
    if not isinstance(data, SpecimenDataModule):
        return
    if known:
        check_classes(known, len(known), data)
    elif fitting and isinstance(model, DistillModule):
        model.objective.check_start(model.num_classes)
    if fitting and isinstance(model, ClassifierModule):
        model.check_fit(data)


def refuse_teachers(data: SpecimenDataModule, model: pl.LightningModule) -> None:
    """Compares what a student's teachers know with the manifest and its division.

    Args:
        data: The data module.
        model: As configured; no student passes.

    Raises:
        CheckpointError: A teacher cannot be used, or knows other classes.
        LeakError: A teacher has seen what the student is judged by.
    """
    if isinstance(model, DistillModule):
        with isolate_rng():  # building networks draws numbers, which the fit is to draw as without this check
            model.check_teachers(data)
