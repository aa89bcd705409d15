"""What a run leaves behind: its split, environment, predictions, metrics and figures, in files and loggers.

The callbacks that talk to the user during a fit (``DataWaitBar``, ``RunHeader``) live in
``kd_convnext.progress`` and can be named from here too.
"""

import platform
import sys
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.utilities.seed import isolate_rng
from matplotlib.figure import Figure

from kd_convnext._version import __version__
from kd_convnext.compiled import plan_compile
from kd_convnext.data.datamodule import SpecimenDataModule
from kd_convnext.data.transforms import still_view
from kd_convnext.errors import ConfigError, Finding, KDConvNeXtError
from kd_convnext.evaluation import Evaluation
from kd_convnext.plotting import (
    confusion_matrix,
    crop_grid,
    per_class_bars,
    reliability_diagram,
    save_figure,
    training_curves,
)
from kd_convnext.progress import DataWaitBar, RunHeader, device_name, say, shown
from kd_convnext.runs import (
    RunFolder,
    class_table,
    prediction_table,
    run_of_checkpoint,
    write_environment,
    write_metrics,
    write_predictions,
    write_table,
)
from kd_convnext.tracking import log_confusion, log_figure, log_files, log_table

if TYPE_CHECKING:
    from kd_convnext.models.backbones import Backbone

__all__ = ["AugmentationPreview", "CurveFigures", "DataWaitBar", "RunHeader", "RunRecord", "run_folder"]

_PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "timm",
    "albumentations",
    "opencv-python-headless",
    "numpy",
    "pandas",
    "scikit-learn",
    "spandrel",
    "wandb",
)


_GRID = 36
"""Pictures of the grid of wrong predictions at most."""


def run_folder(trainer: Trainer) -> RunFolder:
    """Finds where a run's files go.

    Args:
        trainer: Within any of its calls.

    Returns:
        For ``test``, ``validate`` and ``predict`` from a checkpoint the run of that checkpoint, otherwise
        ``default_root_dir``.
    """
    if trainer.state.fn != "fit" and trainer.ckpt_path:
        return run_of_checkpoint(trainer.ckpt_path)
    return RunFolder(Path(trainer.default_root_dir))


class RunRecord(Callback):
    """Writes a run's record into its folder and gives the same to the loggers.

    At the start of a fit the split and the environment; at the end of ``test`` the predictions, metrics and
    figures; at the end of ``validate`` metrics and figures.
    """

    def __init__(
        self,
        max_pictures: int = 200,
        picture_size: int = 96,
        log_validation: bool = False,
        heat_maps: int = 0,
        artifacts: bool = False,
    ) -> None:
        """Sets what the loggers get.

        Args:
            max_pictures: Rows of the prediction table: wrong ones first, the surest of them on top, then
                right ones from the least sure on. ``predictions.csv`` always has all. 0 for no table.
            picture_size: Longer side of the table's pictures, in pixels.
            log_validation: Give the loggers the confusion matrix of every validation during a fit.
            heat_maps: Test photographs to show with the evidence for the predicted class over them, in the table's
                order, and beside each that of the teacher, where its checkpoint is at hand; each map costs about
                fifty forward passes.
            artifacts: Give W&B split and best checkpoint of a fit, and metrics, predictions and report of a test.
        """
        super().__init__()
        self.heat_maps = heat_maps
        self.artifacts = artifacts
        self.max_pictures = max_pictures
        self.picture_size = picture_size
        self.log_validation = log_validation

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes ``split.csv`` and ``environment.json``."""
        if not trainer.is_global_zero:
            return
        folder, data = run_folder(trainer), _data(trainer)
        data.split.write(folder.split, data.manifest)
        write_environment(folder, environment(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Gives W&B the split and the best checkpoint, if asked for."""
        if self.artifacts and trainer.is_global_zero:
            folder = run_folder(trainer)
            log_files(trainer.loggers, "split", "split", [folder.split])
            log_files(trainer.loggers, "checkpoint", "model", [folder.best])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records ``validate``; within a fit gives the loggers the confusion matrix, if asked for."""
        found = _evaluation(trainer, pl_module, "evaluation")
        if found is None or trainer.sanity_checking:
            return
        if trainer.state.fn == "validate":
            self._record(trainer, pl_module, found)
        elif self.log_validation:
            log_confusion(trainer.loggers, "val/confusion_matrix", found, trainer.global_step)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Records ``test``: ``predictions.csv``, ``metrics.json``, ``figures/``."""
        found = _evaluation(trainer, pl_module, "evaluation")
        if found is None:
            return
        write_predictions(run_folder(trainer), found, _data(trainer).manifest)
        self._record(trainer, pl_module, found)
        if self.max_pictures:
            self._show_predictions(trainer, found)
        if self.heat_maps:
            self._show_heat_maps(trainer, pl_module, found)
        if self.artifacts:
            folder = run_folder(trainer)
            log_files(trainer.loggers, "results", "report", [folder.metrics, folder.predictions, folder.report])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the answers: ``predictions_<part>.csv``."""
        found = _evaluation(trainer, pl_module, "evaluation")
        if found is None:
            return
        data = _data(trainer)
        path = run_folder(trainer).predictions_of(data.predict_part)
        write_table(path, prediction_table(found, data.manifest))
        say(trainer, f"Answers for {len(found)} regions of interest: {shown(path)}")

    def _record(self, trainer: Trainer, module: LightningModule, found: Evaluation) -> None:
        """Writes metrics and figures of the images and, where there are lesions, of those."""
        lesions = _evaluation(trainer, module, "lesion_evaluation")
        if getattr(getattr(module, "card", None), "leak_allowed", False):
            write_metrics(run_folder(trainer), {f"{found.part}/leak_allowed": 1.0})
            say(
                trainer, "Warning: lesions of the judged parts were in training (allow_leak): these results are no test"
            )
        for prefix, evaluation in ((found.part, found), (f"{found.part}/lesion", lesions)):
            metrics = evaluation.metrics() if evaluation else {}
            if not evaluation or not metrics:
                continue
            write_metrics(run_folder(trainer), {f"{prefix}/{name}": value for name, value in metrics.items()})
            name = f"{prefix}/confusion_matrix"
            figure = confusion_matrix(evaluation.confusion_matrix(), evaluation.class_names)
            save_figure(run_folder(trainer).figure(name), figure)
            log_confusion(trainer.loggers, name, evaluation, trainer.global_step)
            show_figure(trainer, f"{prefix}/per_class", per_class_bars(evaluation))
            show_figure(trainer, f"{prefix}/reliability", reliability_diagram(evaluation))
            log_table(trainer.loggers, f"{prefix}/per_class_table", class_table(evaluation), trainer.global_step)

    def _show_predictions(self, trainer: Trainer, found: Evaluation) -> None:
        """Gives the loggers the table of predictions with pictures, and a grid of wrong ones."""
        data = _data(trainer)
        chosen = most_telling(found)[: self.max_pictures]
        pictures = [_shrink(data.crops.load(int(row)), self.picture_size) for row in found.index[chosen]]
        table = prediction_table(found, data.manifest).iloc[chosen].reset_index(drop=True)
        # Files have them all in predictions.csv.
        loggers = [logger for logger in trainer.loggers if not isinstance(logger, CSVLogger)]
        log_table(loggers, "test/predictions", table, trainer.global_step, pictures)
        wrong = table[(table["label"] != "") & (table["label"] != table["prediction"])].head(_GRID)
        if len(wrong):
            titles = (wrong["label"] + ", not " + wrong["prediction"]).tolist()
            show_figure(trainer, "test/misclassified", crop_grid(pictures[: len(wrong)], titles))

    def _show_heat_maps(self, trainer: Trainer, module: LightningModule, found: Evaluation) -> None:
        """Shows where the evidence for the predicted classes lies, the surest mistakes first, and the teacher's."""
        # timm imports wandb wherever it is installed; runs without heat maps do without.
        from kd_convnext.inference.explanation import evidence_over, resized

        data, backbone, teacher = _data(trainer), cast("Backbone", module.classifier), _teacher(trainer, module)
        resize, pictures, titles = data.crops.spec.resize, [], []
        for place in most_telling(found)[: self.heat_maps]:
            crop = data.crops.load(int(found.index[place]))
            seen = still_view(crop, backbone.image_size, backbone.in_chans, resize)
            predicted, label = int(found.predictions[place]), int(found.labels[place])
            pictures.append(evidence_over(backbone, seen, predicted, crop, padded=resize == "pad"))
            wrong = f" ({found.class_names[label]})" if label not in (predicted, -1) else ""
            titles.append(f"{found.class_names[predicted]}{wrong}")
            if teacher is not None:
                seen = resized(seen, teacher.image_size)
                pictures.append(evidence_over(teacher, seen, predicted, crop, padded=resize == "pad"))
                titles.append(f"teacher, {found.class_names[predicted]}")
        together = 1 if teacher is None else 2
        show_figure(trainer, "test/heat_maps", crop_grid(pictures, titles, together))


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
        titles = [data.class_names[int(sample["label"])] for sample in samples]
        images = [_picture(np.asarray(sample["image"])) for sample in samples]
        show_figure(trainer, "train/augmented_crops", crop_grid(images, titles))


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
                show_figure(trainer, "train/training_curves", training_curves(pd.read_csv(metrics)))
                return


def show_figure(trainer: Trainer, name: str, figure: Figure) -> None:
    """Writes a figure into the run's folder and gives it to the loggers. Only the first process does.

    Args:
        trainer: Within any of its calls.
        name: Its name in the loggers, such as ``test/per_class``.
        figure: The figure.
    """
    if trainer.is_global_zero:
        folder = run_folder(trainer)
        save_figure(folder.figure(name), figure)
        log_figure(_elsewhere(trainer, folder), name, figure, trainer.global_step)


def _elsewhere(trainer: Trainer, folder: RunFolder) -> list[Logger]:
    """Leaves out the CSV logger of the folder itself: it would draw the same file again."""
    here = folder.path.absolute()
    return [
        logger
        for logger in trainer.loggers
        if not (isinstance(logger, CSVLogger) and Path(logger.log_dir).absolute() == here)
    ]


def most_telling(evaluation: Evaluation) -> npt.NDArray[np.intp]:
    """Orders samples by what there is to learn from looking at them.

    Args:
        evaluation: N samples.

    Returns:
        N positions: wrong answers from the surest on, then the others from the least sure on.
    """
    wrong = (evaluation.labels >= 0) & (evaluation.labels != evaluation.predictions)
    confidence = evaluation.probabilities.max(axis=1)
    return np.lexsort((np.where(wrong, -confidence, confidence), ~wrong))


def environment(trainer: Trainer) -> dict[str, object]:
    """Tells what a fit ran on.

    Args:
        trainer: At the start of a fit.

    Returns:
        Start time, command, device, precision, how steps were planned to run, processes, Python, platform, and package
        versions.
    """
    asked = getattr(trainer.lightning_module, "compile_asked", None)
    versions = {"kd-convnext": __version__}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "device": device_name(trainer),
        "precision": trainer.precision,
        "steps": None if asked is None else str(plan_compile(asked, trainer)),
        "processes": trainer.world_size,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions,
    }


def _data(trainer: Trainer) -> SpecimenDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, SpecimenDataModule):
        remedy = "Pass datamodule=SpecimenDataModule(...), or leave this callback out."
        raise ConfigError(Finding("trainer", "was given other data than a SpecimenDataModule", remedy))
    return data


def _teacher(trainer: Trainer, module: LightningModule) -> "Backbone | None":
    """Loads the teacher of a distilled student, where its checkpoint is at hand."""
    from kd_convnext.inference.network import load_network

    path = getattr(module, "teacher_ckpt", None)
    if path is None or not Path(path).is_file():
        return None
    try:
        with torch.inference_mode(False):  # its weights take part in gradients
            return load_network(path, str(module.device)).backbone
    except KDConvNeXtError as error:
        say(trainer, f"Heat maps are shown without the teacher's: {error}")
        return None


def _evaluation(trainer: Trainer, module: LightningModule, name: str) -> Evaluation | None:
    """Reads what the module has collected; None in all processes but the first."""
    return cast("Evaluation | None", getattr(module, name, None)) if trainer.is_global_zero else None


def _shrink(image: npt.NDArray[np.uint8], side: int) -> npt.NDArray[np.uint8]:
    scale = side / max(image.shape[:2])
    if scale >= 1:
        return image
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)


def _picture(image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Turns uint8 [C, H, W] with one or three channels into [H, W, 3]."""
    return np.broadcast_to(image, (3, *image.shape[1:])).transpose(1, 2, 0)
