"""Finds the run folder of a trainer and logs figures to every logger."""

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CSVLogger, Logger
from matplotlib.figure import Figure

from kd_convnext.common.figures import save_for_print
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.runs.folder import RunFolder, run_of_checkpoint
from kd_convnext.runs.loggers import log_figure


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


def show_figure(trainer: Trainer, name: str, figure: Figure) -> None:
    """Writes a figure (PNG and PDF) into the run's folder and gives it to the loggers. Only the first process does.

    Args:
        trainer: Within any of its calls.
        name: Its name in the loggers, such as ``test/per_class``.
        figure: The figure.
    """
    if trainer.is_global_zero:
        folder = run_folder(trainer)
        save_for_print(folder.figure(name), figure)
        log_figure(_elsewhere(trainer, folder), name, figure, trainer.global_step)


def _elsewhere(trainer: Trainer, folder: RunFolder) -> list[Logger]:
    """Leaves out the CSV logger of the folder itself: it would draw the same file again."""
    here = folder.path.absolute()
    return [
        logger
        for logger in trainer.loggers
        if not (isinstance(logger, CSVLogger) and Path(logger.log_dir).absolute() == here)
    ]


def _data(trainer: Trainer) -> SpecimenDataModule:
    data = getattr(trainer, "datamodule", None)
    if not isinstance(data, SpecimenDataModule):
        remedy = "Pass datamodule=SpecimenDataModule(...), or leave this callback out."
        raise ConfigError(Finding("trainer", "was given other data than a SpecimenDataModule", remedy))
    return data
