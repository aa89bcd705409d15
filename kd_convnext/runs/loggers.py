"""Logs figures, tables and files to every logger: W&B, TensorBoard, or the run's folder.

Scalars need nothing of this: ``LightningModule.log`` serves all loggers. wandb is imported only where a
``WandbLogger`` is given; a logger of another kind keeps its scalars and gets no pictures.
"""

import contextlib
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure

from kd_convnext.common.counting import counted
from kd_convnext.common.figures import as_picture, save_figure
from kd_convnext.common.tables import markdown_text
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.runs.figures import confusion_matrix
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.tables import write_table

if TYPE_CHECKING:
    from kd_convnext.evaluation.answers import Evaluation

Pictures = Sequence[npt.NDArray[np.uint8]]
"""uint8 [H, W, 3] each, RGB."""

_MARKDOWN_ROWS = 200
"""TensorBoard shows text whole: longer tables are cut there and end in a line that says so."""


def keep_console() -> None:
    """Keeps what is printed on this machine, before W&B begins: it would take it as ``output.log``.

    Lines may name photographs. Who has set ``WANDB_CONSOLE`` is obeyed.
    """
    os.environ.setdefault("WANDB_CONSOLE", "off")


@contextlib.contextmanager
def wandb_in_words() -> Iterator[None]:
    """Translates what W&B refuses, such as a run without a login.

    Raises:
        ConfigError: It refuses the run.
    """
    try:
        yield
    except _wandb_errors() as error:
        what = " ".join(str(error).split()).rstrip(".")[:400] or type(error).__name__
        remedy = "Log in (wandb login), or set WANDB_MODE=offline and send the run later (wandb sync)."
        raise ConfigError(Finding("Weights & Biases", what, remedy)) from error


def _wandb_errors() -> tuple[type[Exception], ...]:
    """Finds W&B's own exceptions, where it is in use."""
    errors = getattr(sys.modules.get("wandb"), "errors", None)
    return (errors.Error,) if errors is not None else ()


@rank_zero_only
def log_figure(loggers: Iterable[Logger], name: str, figure: Figure, step: int) -> None:
    """Logs a figure to every logger.

    Args:
        loggers: ``trainer.loggers``; may be empty.
        name: Such as ``test/per_class``.
        figure: The figure.
        step: ``trainer.global_step``.
    """
    for sink in _sinks(loggers):
        sink.figure(name, figure, step)


@rank_zero_only
def log_table(
    loggers: Iterable[Logger], name: str, frame: pd.DataFrame, step: int, pictures: Pictures | None = None
) -> None:
    """Logs a table to every logger.

    Args:
        loggers: ``trainer.loggers``; may be empty.
        name: Such as ``test/per_class_table``.
        frame: The table.
        step: ``trainer.global_step``.
        pictures: One a row, uint8 [H, W, 3]: W&B's table gets them as its first column ``picture``. Other
            loggers' tables are text.
    """
    for sink in _sinks(loggers):
        sink.table(name, frame, pictures, step)


@rank_zero_only
def log_confusion(loggers: Iterable[Logger], name: str, evaluation: "Evaluation", step: int, caption: str = "") -> None:
    """Logs the confusion matrix to every logger as a picture, and to W&B also as a chart.

    Args:
        loggers: ``trainer.loggers``; may be empty.
        name: Such as ``test/confusion_matrix``; the chart is ``<name>_chart``.
        evaluation: Of a part with known labels.
        step: ``trainer.global_step``.
        caption: Above the picture.
    """
    for sink in _sinks(loggers):
        sink.confusion(name, evaluation, step, caption)


@rank_zero_only
def log_files(loggers: Iterable[Logger], name: str, kind: str, files: Sequence[Path]) -> None:
    """Logs files to W&B as a versioned artifact; other loggers have them in the run's folder.

    Args:
        loggers: ``trainer.loggers``; may be empty.
        name: Of the artifact; W&B's run id is put before it, so that runs do not version each other's.
        kind: W&B's type, such as ``model`` or ``split``.
        files: Those that exist are taken; without any there is no artifact.
    """
    found = [file for file in files if file.is_file()]
    for logger in loggers:
        if isinstance(logger, WandbLogger) and found:
            import wandb

            artifact = wandb.Artifact(f"{logger.experiment.id}-{name}", type=kind)
            for file in found:
                artifact.add_file(str(file))
            logger.experiment.log_artifact(artifact)


class _Sink(ABC):
    """Writes figures and tables to one kind of logger."""

    @abstractmethod
    def figure(self, name: str, figure: Figure, step: int) -> None: ...

    @abstractmethod
    def table(self, name: str, frame: pd.DataFrame, pictures: Pictures | None, step: int) -> None: ...

    def confusion(self, name: str, evaluation: "Evaluation", step: int, caption: str) -> None:
        counts = evaluation.confusion_matrix()
        self.figure(name, confusion_matrix(counts, evaluation.class_names, caption=caption), step)


@dataclass(frozen=True)
class _WandbSink(_Sink):
    logger: WandbLogger

    def figure(self, name: str, figure: Figure, step: int) -> None:
        self.logger.log_image(name, [as_picture(figure)], step)

    def table(self, name: str, frame: pd.DataFrame, pictures: Pictures | None, step: int) -> None:
        import wandb

        columns, rows = frame.columns.tolist(), frame.astype(object).to_numpy().tolist()
        if pictures is not None:
            columns = ["picture", *columns]
            rows = [[wandb.Image(picture), *row] for picture, row in zip(pictures, rows, strict=True)]
        self.logger.log_table(name, columns=columns, data=rows, step=step)

    def confusion(self, name: str, evaluation: "Evaluation", step: int, caption: str) -> None:
        import wandb

        super().confusion(name, evaluation, step, caption)
        known = evaluation.labels >= 0
        chart = wandb.plot.confusion_matrix(
            y_true=evaluation.labels[known].tolist(),
            preds=evaluation.predictions[known].tolist(),
            class_names=list(evaluation.class_names),
            title=name,
        )
        self.logger.experiment.log({f"{name}_chart": chart, "trainer/global_step": step})


@dataclass(frozen=True)
class _TensorBoardSink(_Sink):
    logger: TensorBoardLogger

    def figure(self, name: str, figure: Figure, step: int) -> None:
        # Not add_figure: it closes the figure through pyplot.
        self.logger.experiment.add_image(name, as_picture(figure), step, dataformats="HWC")

    def table(self, name: str, frame: pd.DataFrame, pictures: Pictures | None, step: int) -> None:
        self.logger.experiment.add_text(name, _markdown(frame), step)


@dataclass(frozen=True)
class _FileSink(_Sink):
    logger: CSVLogger

    def figure(self, name: str, figure: Figure, step: int) -> None:
        save_figure(self._file(name, ".png"), figure)

    def table(self, name: str, frame: pd.DataFrame, pictures: Pictures | None, step: int) -> None:
        write_table(self._file(name, ".csv"), frame)

    def _file(self, name: str, suffix: str) -> Path:
        return RunFolder(Path(self.logger.log_dir)).figure(name, suffix)


def _sinks(loggers: Iterable[Logger]) -> Iterator[_Sink]:
    for logger in loggers:
        match logger:
            case WandbLogger():
                yield _WandbSink(logger)
            case TensorBoardLogger():
                yield _TensorBoardSink(logger)
            case CSVLogger():
                yield _FileSink(logger)


def _markdown(frame: pd.DataFrame) -> str:
    """Writes a table as Markdown, floats with four digits."""
    shown = frame.head(_MARKDOWN_ROWS).map(
        lambda cell: f"{cell:.4g}" if isinstance(cell, float) else markdown_text(str(cell))
    )
    header = [[markdown_text(str(column)) for column in frame.columns], ["---"] * frame.shape[1]]
    lines = [f"| {' | '.join(row)} |" for row in header + shown.to_numpy().tolist()]
    if len(frame) > _MARKDOWN_ROWS:
        lines += ["", f"... and {counted(len(frame) - _MARKDOWN_ROWS, 'more row')}"]
    return "\n".join(lines)
