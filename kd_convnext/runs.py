"""A run's folder: its fixed tree, and the tables and numbers that are written into it."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import pandas as pd

from kd_convnext.errors import ConfigError, Finding
from kd_convnext.files import atomic_write, write_finding

if TYPE_CHECKING:
    from kd_convnext.data.manifest import Manifest
    from kd_convnext.evaluation import Evaluation

_BOX = ["x", "y", "width", "height"]


@dataclass(frozen=True)
class RunFolder:
    """Where everything of one run lies. The names are the same in every run.

    Attributes:
        path: The run's folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def split(self) -> Path:
        """Which photograph went to which part."""
        return self.path / "split.csv"

    @property
    def environment(self) -> Path:
        """Versions, device and command of the fit."""
        return self.path / "environment.json"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def best(self) -> Path:
        """The checkpoint with the best validation score."""
        return self.checkpoints / "best.ckpt"

    @property
    def last(self) -> Path:
        """The newest checkpoint, to resume from."""
        return self.checkpoints / "last.ckpt"

    @property
    def metrics(self) -> Path:
        """Test (and, if asked for, validation) metrics."""
        return self.path / "metrics.json"

    @property
    def predictions(self) -> Path:
        """The test part's predictions."""
        return self.path / "predictions.csv"

    def predictions_of(self, part: str) -> Path:
        """What ``predict`` answered for a part (``all`` for the whole manifest)."""
        return self.path / f"predictions_{part}.csv"

    @property
    def figures(self) -> Path:
        """Folder of the figures."""
        return self.path / "figures"

    @property
    def report(self) -> Path:
        """The page that shows the run."""
        return self.path / "report.html"

    def figure(self, name: str, suffix: str = ".png") -> Path:
        """Names the file of a figure or table, from the name it has in the loggers.

        Args:
            name: Such as ``test/confusion_matrix`` or ``val/lesion/confusion_matrix``.
            suffix: Of the file.

        Returns:
            A path in ``figures``. A run has one training and is judged by its test, so these prefixes are left out
            (``augmented_crops.png``, ``confusion_matrix.png``); another is kept (``val_confusion_matrix.png``).
        """
        flat = re.sub(r"[^\w.-]+", "_", name.removeprefix("train/").removeprefix("test/"))
        return self.figures / f"{flat}{suffix}"


def new_run_folder(root: str | Path, name: str, option: str = "--trainer.default_root_dir") -> RunFolder:
    """Makes the empty folder of a new run, ``root/name/<time>``.

    Args:
        root: Folder of all runs; made if missing.
        name: Name of the experiment: one plain folder name.
        option: The option that names another folder, for the error message.

    Returns:
        The folder. Runs that start in the same second, also in two processes, each get their own
        (``-2``, ``-3``).

    Raises:
        ConfigError: ``name`` is not a plain folder name, or the folder cannot be made.
    """
    if Path(name).name != name or name == "..":
        raise ConfigError(Finding("run name", f"{name!r} is not a plain folder name", "Leave out slashes."))
    started = f"{datetime.now():%Y-%m-%d_%H-%M-%S}"
    path, number = Path(root) / name / started, 1
    while True:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
            path = path.with_name(f"{started}-{number}")
        except OSError as error:
            found = write_finding(path, error)
            raise ConfigError(Finding(found.where, found.what, f"{found.remedy} ({option})")) from error
        else:
            return RunFolder(path)


def run_of_checkpoint(ckpt_path: str | Path) -> RunFolder:
    """Finds the run a checkpoint belongs to: what is computed from it is written there.

    Args:
        ckpt_path: The checkpoint file.

    Returns:
        The folder above ``checkpoints``; for a checkpoint that lies elsewhere, the folder it lies in.
    """
    folder = Path(ckpt_path).absolute().parent
    return RunFolder(folder.parent if folder.name == "checkpoints" else folder)


def require_empty(path: Path, *, permitted: bool, option: str) -> None:
    """Refuses to write into a folder that holds something already.

    Args:
        path: The folder, existing or not.
        permitted: The user has asked to resume or to overwrite.
        option: What the user types to ask for it, such as ``--resume true`` or ``--overwrite true``.

    Raises:
        ConfigError: The folder is not empty, or a file of that name stands there.
    """
    if path.exists() and not path.is_dir():
        raise ConfigError(Finding(str(path), "is a file, not a folder", "Name another folder."))
    if path.is_dir() and not permitted and any(path.iterdir()):
        remedy = f"Name another folder, or add {option} to write there."
        raise ConfigError(Finding(str(path), "the folder is not empty", remedy))


def write_metrics(folder: RunFolder, metrics: Mapping[str, float]) -> None:
    """Writes numbers into ``metrics.json``, keeping those of other names that stand there.

    Args:
        folder: The run.
        metrics: Names with their prefix (``test/f1_macro``, ``val/lesion/accuracy``) and values. A value that
            is not finite (an area under the curve with one class only) is written as ``null``.

    Raises:
        ConfigError: The file cannot be written, or what stands there is not ours.
    """
    merged = read_metrics(folder) | dict(metrics)
    clean = {name: float(value) if math.isfinite(value) else None for name, value in merged.items()}
    text = json.dumps(clean, indent=2, ensure_ascii=False) + "\n"
    write_text(folder.metrics, text)


def read_metrics(folder: RunFolder) -> dict[str, float]:
    """Reads ``metrics.json``.

    Args:
        folder: The run.

    Returns:
        Names and values; ``null`` comes back as NaN. Empty if the run has no such file.

    Raises:
        ConfigError: The file is not a table of numbers.
    """
    if not folder.metrics.exists():
        return {}
    try:
        found = json.loads(folder.metrics.read_text(encoding="utf-8"))
        return {str(name): math.nan if value is None else float(value) for name, value in found.items()}
    except (ValueError, TypeError, AttributeError) as error:
        what = f"is not a table of metrics ({error})"
        raise ConfigError(Finding(str(folder.metrics), what, "Move the file away and test again.")) from error


def class_table(evaluation: "Evaluation") -> pd.DataFrame:
    """Puts the per-class figures into a table.

    Args:
        evaluation: Of a part with known labels.

    Returns:
        One row a class: ``class``, ``support`` (labelled so), ``predicted`` (predicted so), ``precision``,
        ``recall``, ``f1`` (0 to 1).
    """
    matrix, metrics, names = evaluation.confusion_matrix(), evaluation.metrics(), evaluation.class_names
    table = {"class": names, "support": matrix.sum(axis=1), "predicted": matrix.sum(axis=0)}
    scores = {score: [metrics[f"{score}/{name}"] for name in names] for score in ("precision", "recall", "f1")}
    return pd.DataFrame({**table, **scores})


def prediction_table(evaluation: "Evaluation", manifest: "Manifest") -> pd.DataFrame:
    """Puts one evaluation's answers into a table.

    Args:
        evaluation: Its ``index`` holds rows of ``manifest``.
        manifest: The manifest that was evaluated.

    Returns:
        One row an ROI, in the manifest's order: ``image``, ``lesion_id``, ``label`` (empty if unknown),
        ``prediction``, ``prob_<class>`` for each class, and, where the manifest has boxes, ``x``, ``y``,
        ``width``, ``height`` (several ROIs may share a photograph).
    """
    names = np.array([*evaluation.class_names, ""], dtype=object)  # label -1 is the last: unknown
    rows = manifest.table.iloc[evaluation.index].reset_index(drop=True)
    frame = rows[["image", "lesion_id"]].copy()
    frame["label"] = names[evaluation.labels]
    frame["prediction"] = names[evaluation.predictions]
    for column, name in enumerate(evaluation.class_names):
        frame[f"prob_{name}"] = evaluation.probabilities[:, column]
    if manifest.table["x"].notna().any():
        frame[_BOX] = rows[_BOX]
    return frame


def write_table(path: Path, frame: pd.DataFrame) -> None:
    """Writes a table as CSV (UTF-8, numbers with 8 digits, no row numbers).

    Args:
        path: The file, replaced at once.
        frame: The table, such as ``prediction_table``.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_text(path, frame.to_csv(index=False, float_format="%.8g"))


def write_predictions(folder: RunFolder, evaluation: "Evaluation", manifest: "Manifest") -> None:
    """Writes ``predictions.csv``.

    Args:
        folder: The run.
        evaluation: See ``prediction_table``.
        manifest: See ``prediction_table``.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_table(folder.predictions, prediction_table(evaluation, manifest))


def write_environment(folder: RunFolder, environment: Mapping[str, object]) -> None:
    """Writes ``environment.json``.

    Args:
        folder: The run.
        environment: Anything JSON knows.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_text(folder.environment, json.dumps(environment, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Writes a text file (UTF-8).

    Args:
        path: The file, replaced at once.
        text: Its content.

    Raises:
        ConfigError: The file cannot be written.
    """

    def write(file: BinaryIO) -> None:
        file.write(text.encode("utf-8"))

    try:
        atomic_write(path, write)
    except OSError as error:
        raise ConfigError(write_finding(path, error)) from error
