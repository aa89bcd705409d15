"""Reads and writes the record of a finished cell of an experiment."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal, get_args

from kd_convnext.common.files import atomic_write, read_bytes, write_finding
from kd_convnext.common.reading import json_of
from kd_convnext.errors import ConfigError, Finding

Family = Literal["ablation", "rival", "super_resolution", "sweep", "run"]
Status = Literal["finished", "failed"]

CELL_FILE = "cell.json"


@dataclass(frozen=True)
class CellRecord:
    """One method on one split in one setting, finished or failed.

    Attributes:
        folder: The cell's run folder (the tree of :class:`kd_convnext.runs.folder.RunFolder`).
        method: Key of the method, such as ``kd_both``.
        title: Its name in tables.
        family: Which comparison it belongs to.
        setting: What differs from the experiment's own setting: ``default``, ``upscaler=bicubic``, ...
        repeat: Which of the seeded splits, from 0.
        seed: Of the training.
        config_hash: Hash of the cell's configuration; another configuration makes it another cell.
        status: How it ended.
        error: What went wrong, in one line; None where it finished.
        seconds: Time spent on it, over all its attempts.
    """

    folder: Path
    method: str
    title: str
    family: Family
    setting: str
    repeat: int
    seed: int
    config_hash: str
    status: Status
    error: str | None
    seconds: float

    @property
    def name(self) -> str:
        """Name of its method and setting in tables."""
        return self.title if self.setting == "default" else f"{self.title}, {setting_words(self.setting)}"


def setting_words(setting: str) -> str:
    """Writes a setting as a reader would say it: ``upscaler=spandrel`` is ``super-resolved``; others stay.

    Args:
        setting: See :class:`CellRecord`.
    """
    key, _, value = setting.partition("=")
    return _ENLARGED.get(value, setting) if key == "upscaler" else setting


_ENLARGED = {
    "auto": "enlarged by choice of the machine",
    "spandrel": "super-resolved",
    "ncnn": "super-resolved (ncnn)",
    "realesrgan": "super-resolved (realesrgan)",
    "bicubic": "enlarged bicubically",
    "none": "not enlarged",
}
"""Upscalers in words."""


def write_cell(record: CellRecord) -> None:
    """Writes ``cell.json`` into the cell's folder, whole or not at all. It is the last file of a cell.

    Args:
        record: The cell.

    Raises:
        ConfigError: The file cannot be written.
    """
    values = dataclasses.asdict(record)
    # The folder may be moved or copied from another machine.
    del values["folder"]
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    def write(file: BinaryIO) -> None:
        file.write(text.encode("utf-8"))

    path = record.folder / CELL_FILE
    try:
        atomic_write(path, write)
    except OSError as error:
        raise ConfigError(write_finding(path, error)) from error


def read_cell(folder: Path) -> CellRecord:
    """Reads a cell's record.

    Args:
        folder: The cell's run folder.

    Returns:
        The record, with the folder where it lies now.

    Raises:
        ConfigError: There is no record, or it is not one of ours.
    """
    path = folder / CELL_FILE
    remedy = "Move the folder away and run the experiment again; other cells are kept."
    try:
        found = json_of(read_bytes(path))
        record = CellRecord(folder=folder, **found)
    except FileNotFoundError as error:
        raise ConfigError(Finding(str(folder), f"holds no {CELL_FILE}", "The cell is not finished yet.")) from error
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(Finding(str(path), f"is not the record of a cell ({error})", remedy)) from error
    if record.family not in get_args(Family) or record.status not in get_args(Status):
        what = f"has family {record.family!r} and status {record.status!r}, which are unknown"
        raise ConfigError(Finding(str(path), what, remedy))
    return record
