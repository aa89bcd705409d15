"""Finds the run folder of a trainer and logs figures to every logger."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import pandas as pd
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from matplotlib.figure import Figure

from kd_convnext.checkpoints.naming import network_name
from kd_convnext.common.console import say
from kd_convnext.common.counting import count_words
from kd_convnext.common.figures import save_for_print
from kd_convnext.common.files import atomic_write_all, sha256_of
from kd_convnext.common.tables import guarded, read_table
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.data.manifest.grouping import Part
from kd_convnext.data.manifest.ids import hidden_ids
from kd_convnext.data.manifest.units import salt_of
from kd_convnext.errors import ConfigError, Finding
from kd_convnext.runs.folder import RunFolder, run_of_checkpoint
from kd_convnext.runs.judged import Judged, data_name, external_folder, require_free
from kd_convnext.runs.left_out import left_out_table, read_left_out
from kd_convnext.runs.loggers import log_figure
from kd_convnext.runs.tables import write_table
from kd_convnext.training.changed import changes


def run_folder(trainer: Trainer) -> RunFolder:
    """Finds where a run's files go.

    Args:
        trainer: Within any of its calls.

    Returns:
        For ``test``, ``validate`` and ``predict`` from a checkpoint the run of that checkpoint, or its folder
        ``external/<name>`` where other photographs are judged than the run was divided into; otherwise
        ``default_root_dir``.
    """
    if trainer.state.fn == "fit" or not trainer.ckpt_path:
        return RunFolder(Path(trainer.default_root_dir))
    run = run_of_checkpoint(trainer.ckpt_path)
    if not judges_others(trainer):
        return run
    data = _data(trainer)
    return external_folder(run, data.path, data.split.hash)


def judges_others(trainer: Trainer) -> bool:
    """Tells whether other photographs are judged than those that the network's run was divided into.

    Args:
        trainer: Within ``test``, ``validate`` or ``predict``, after the checkpoint was read.
    """
    card, data = getattr(trainer.lightning_module, "card", None), getattr(trainer, "datamodule", None)
    return card is not None and isinstance(data, SpecimenDataModule) and data.split.hash != card.split_hash


class HoldsFiles:
    """Holds files that a fit begins with until it is sure to begin; callbacks and loggers inherit from it.

    Attributes:
        begins: Contents by path.
    """

    begins: dict[Path, bytes]


def begin_files(trainer: Trainer, files: Mapping[Path, bytes]) -> None:
    """Writes the files that a fit begins with, all of them or none; says what changed since the one that it continues.

    Args:
        trainer: At the start of a fit. Its callbacks and loggers add what they hold (`HoldsFiles`).
        files: Contents by path.

    Raises:
        OSError: One cannot be written; then none is changed.
    """
    contents = dict(files)
    for told in changes(run_folder(trainer), contents) if trainer.ckpt_path else ():
        say(trainer, f"Warning: {told}; the fit goes on with them as they are now")
    for each in (*trainer.callbacks, *trainer.loggers):  # type: ignore[attr-defined]
        if isinstance(each, HoldsFiles):
            contents |= each.begins
    atomic_write_all({path: partial(_put, content) for path, content in contents.items()})


def left_out_file(trainer: Trainer, *parts: Part) -> dict[Path, bytes]:
    """Collects what could not be read of parts, beside what the run's record holds of other parts.

    Args:
        trainer: After the crops of the parts were made.
        parts: Those that are used now.

    Returns:
        The content of ``left_out.csv``, by its path; nothing where there is nothing to say and nothing was said.
    """
    data, folder = _data(trainer), run_folder(trainer)
    before = read_left_out(folder)
    kept = before[~before["split"].isin([*parts, ""])]
    now = left_out_table(data.manifest, data.split, data.crops.failed, parts)
    found = kept if now.empty else now if kept.empty else pd.concat([now, kept])
    if found.empty and not folder.left_out.is_file():
        return {}
    return {folder.left_out: guarded(found).to_csv(index=False, lineterminator="\n").encode()}


def _put(content: bytes, file: BinaryIO) -> None:
    file.write(content)


def begin_results(trainer: Trainer, part: str, *, overwrite: bool) -> Judged | None:
    """Finds what the coming results are of, and refuses to replace those of another checkpoint.

    Args:
        trainer: At the start of ``test``, ``validate`` or ``predict``.
        part: Which results.
        overwrite: Replace those of another checkpoint.

    Returns:
        What is to be recorded with them; None without a checkpoint.

    Raises:
        ConfigError: The folder holds results of another checkpoint.
        LeakError: Other photographs than the run's own hold copies of such that the network was trained on.
    """
    if not trainer.ckpt_path:
        return None
    path, data, folder = Path(trainer.ckpt_path), _data(trainer), run_folder(trainer)
    judged = Judged(path.name, sha256_of(path), data.split.hash, data_name(data.path))
    others = judges_others(trainer)
    if not overwrite:
        require_free(folder, part, judged, own=not others)
    if others and part in ("val", "test"):
        from kd_convnext.training.outside import refuse_copies  # with the networks, and what they import

        refuse_copies(trainer, data, cast("Part", part))
    return judged


def pictures_may_leave(trainer: Trainer) -> bool:
    """Tells whether photographs may be sent to W&B: only where it was asked for (``--wandb.pictures true``).

    Args:
        trainer: With its callbacks.
    """
    return any(getattr(callback, "wandb_pictures", False) for callback in trainer.callbacks)  # type: ignore[attr-defined]


def show_figure(trainer: Trainer, name: str, figure: Figure, *, photographs: bool = False) -> None:
    """Writes a figure (PNG and PDF) into the run's folder and gives it to the loggers. Only the first process does.

    Args:
        trainer: Within any of its calls.
        name: Its name in the loggers, such as ``test/per_class``.
        figure: The figure.
        photographs: It shows photographs, which go to W&B by choice only.
    """
    if trainer.is_global_zero:
        folder = run_folder(trainer)
        save_for_print(folder.figure(name), figure)
        loggers = _elsewhere(trainer)
        if photographs and not pictures_may_leave(trainer):
            loggers = [logger for logger in loggers if not isinstance(logger, WandbLogger)]
        log_figure(loggers, name, figure, trainer.global_step)


def model_words(module: LightningModule) -> str:
    """Names the network of a module and its size, for figures.

    Args:
        module: A teacher, a baseline or a student.
    """
    settings = module.hparams.get("student") or module.hparams.get("backbone") or {}
    backbone = getattr(module, "classifier", module)
    network = settings if isinstance(settings, Mapping) else {"name": getattr(backbone, "name", "network")}
    size = count_words(sum(parameter.numel() for parameter in backbone.parameters()))
    return f"{network_name(network)}, {size} parameters"


def shareable(folder: RunFolder, tables: Sequence[Path], data: SpecimenDataModule) -> list[Path]:
    """Copies tables into ``shared/``, ids and names of files as salted hashes: what loggers may upload.

    Args:
        folder: Of the run.
        tables: Files there; such as are not there are left out.
        data: Whose photographs make the salt (`salt_of`).

    Returns:
        The copies.
    """
    copies = []
    for path in tables:
        if path.is_file():
            copy = folder.path / "shared" / path.name
            write_table(copy, hidden_ids(read_table(path), salt_of(data.manifest), images=True))
            copies.append(copy)
    return copies


def _elsewhere(trainer: Trainer) -> list[Logger]:
    """Leaves out the CSV logger of the run's folder: it would draw the same file again, or one of an external test."""
    fitting = trainer.state.fn == "fit" or not trainer.ckpt_path
    run = RunFolder(Path(trainer.default_root_dir)) if fitting else run_of_checkpoint(trainer.ckpt_path or "")
    here = run.path.absolute()
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
