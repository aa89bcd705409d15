"""Logs augmented training images and training curves."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.seed import isolate_rng

from kd_convnext.common.counting import counted
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.loading.dataset import SpecimenDataset
from kd_convnext.data.loading.mixing import MixedDataset
from kd_convnext.data.loading.unlabelled import UNLABELLED
from kd_convnext.data.manifest.grouping import Part
from kd_convnext.evaluation.direction import Choice
from kd_convnext.runs.figures import crop_grid, training_curves
from kd_convnext.training.checkpointing import choosing
from kd_convnext.training.outputs import _data, model_words, show_figure

_BEYOND = {"reflect": "its mirror image (--data.augment.border black shows none)", "black": "black"}


class AugmentationPreview(Callback):
    """Shows, before the first step, what augmentation makes of some training crops."""

    def __init__(self, pictures: int = 16) -> None:
        """Sets the size of the grid.

        Args:
            pictures: Crops, spread evenly over the training part.
        """
        super().__init__()
        self.pictures = pictures

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes ``figures/augmented_crops.png`` and tells the loggers; the global random state stays."""
        if not trainer.is_global_zero:
            return
        data = _data(trainer)
        places = np.linspace(0, len(data.train_set) - 1, min(self.pictures, len(data.train_set))).astype(int)
        with isolate_rng():
            samples = [data.train_set[int(place)] for place in places]
        labels = [int(sample["label"]) for sample in samples]
        titles = ["no label" if label == UNLABELLED else data.class_names[label] for label in labels]
        caption = (
            f"{len(samples)} of {_both_kinds(data.train_set)} as the network sees them, "
            f"augmented at random; what lies beyond a crop's border is {_BEYOND[data.augment.border]}."
        )
        images = [_picture(np.asarray(sample["image"])) for sample in samples]
        show_figure(trainer, "train/augmented_crops", crop_grid(images, titles, caption=caption), photographs=True)


def _both_kinds(part: SpecimenDataset) -> str:
    """Counts the crops of a training part, those with and without labels."""
    if not isinstance(part, MixedDataset):
        return counted(len(part), "training crop")
    return f"{counted(len(part.labelled), 'training crop')} and {len(part.unlabelled)} without labels"


class CurveFigures(Callback):
    """Draws the curves of loss, its terms and macro F1 once a fit is done, from the CSV logger's numbers."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes ``figures/training_curves.png``, if there is a ``CSVLogger``."""
        if not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if not isinstance(logger, CSVLogger):
                continue
            logger.save()
            metrics = Path(logger.log_dir) / "metrics.csv"
            if metrics.exists():
                caption = _over_the_epochs(trainer, pl_module)
                figure = training_curves(pd.read_csv(metrics), caption, _choice(trainer))
                show_figure(trainer, "train/training_curves", figure)
                return


def _choice(trainer: Trainer) -> Choice | None:
    """Returns what chooses the epoch of ``best.ckpt``; None where no score does."""
    kept = choosing(trainer)
    return None if kept is None else Choice(str(kept.monitor), "min" if kept.mode == "min" else "max")


def _over_the_epochs(trainer: Trainer, module: LightningModule) -> str:
    """Says what curves show: of how many photographs and lesions, where that is known, by which network."""
    data = getattr(trainer, "datamodule", None)
    shown = "Training and validation part"
    if isinstance(data, SpecimenDataModule):
        shown = f"Training part ({_counts(data, 'train')}) and validation part ({_counts(data, 'val')})"
    return f"{shown} over the epochs: mean of an epoch's batches, whole validation. {model_words(module)}."


def _counts(data: SpecimenDataModule, part: Part) -> str:
    used = data.used(part)
    lesions = np.unique(data.manifest.groups("lesion")[used]).size
    return f"{counted(len(used), 'photograph')} of {counted(lesions, 'lesion')}"


def _picture(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Turns uint8 [C, H, W] with one or three channels into [H, W, 3]."""
    return np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
