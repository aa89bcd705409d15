"""Names the files of a run's folder and makes new ones."""

import contextlib
import os
import re
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from kd_convnext.common.files import is_utf8, write_finding
from kd_convnext.errors import ConfigError, Finding


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run's files; the names are the same in every run.

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
        """File of the split: the part of each photograph."""
        return self.path / "split.csv"

    @property
    def left_out(self) -> Path:
        """File of what could not be read: only where something was left out."""
        return self.path / "left_out.csv"

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
    def cost(self) -> Path:
        """File of the network's cost: parameters, multiply-adds, time of a photograph."""
        return self.path / "cost.json"

    @property
    def predictions(self) -> Path:
        """The test part's predictions."""
        return self.path / "predictions.csv"

    def predictions_of(self, part: str) -> Path:
        """File of the predictions for a part (``all`` for the whole manifest)."""
        return self.path / f"predictions_{part}.csv"

    @property
    def judged(self) -> Path:
        """File that names the checkpoint and the photographs of the results."""
        return self.path / "judged.json"

    @property
    def external(self) -> Path:
        """Folder of the results on photographs that are not the run's own."""
        return self.path / "external"

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
    folder = Path(ckpt_path).expanduser().absolute().parent
    return RunFolder(folder.parent if folder.name == "checkpoints" else folder)


def require_empty(path: Path, *, permitted: bool, option: str) -> None:
    """Refuses to write into a folder that holds something already, or that cannot be written.

    Args:
        path: The folder, existing or not.
        permitted: The user has asked to resume or to overwrite.
        option: What the user types to ask for it, such as ``--resume true`` or ``--overwrite true``.

    Raises:
        ConfigError: The folder is not empty, a file of that name stands there, nothing can be written there, or its
            name is in another encoding than UTF-8, which tables, configurations and other programs need.
    """
    if not is_utf8(path):
        raise ConfigError(Finding(str(path), "its name is not in UTF-8", "Name another folder."))
    if path.exists() and not path.is_dir():
        raise ConfigError(Finding(str(path), "is a file, not a folder", "Name another folder."))
    if path.is_dir() and not permitted and any(path.iterdir()):
        remedy = f"Name another folder, or add {option} to write there."
        raise ConfigError(Finding(str(path), "the folder is not empty", remedy))
    require_writable(path)


def require_writable(path: Path) -> None:
    """Refuses a folder where no file can be made, before anything is computed for it.

    Args:
        path: The folder, existing or not; nothing is left there.

    Raises:
        ConfigError: No file can be made there.
    """
    lacking = [folder for folder in (path, *path.parents) if not os.path.lexists(folder)]
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ConfigError(write_finding(path, error)) from error
    finally:
        for folder in lacking:
            with contextlib.suppress(OSError):
                folder.rmdir()
