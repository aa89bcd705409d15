"""Chooses run folder and precision of a command, and tells its other processes; says what a stopped run has left."""

import os
import shlex
from pathlib import Path
from typing import cast

from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from kd_convnext.common.machine import best_precision
from kd_convnext.common.reading import read_json
from kd_convnext.common.words import command_line
from kd_convnext.errors import ConfigError, Finding, Terminated
from kd_convnext.runs.folder import RunFolder, new_run_folder, require_writable, run_of_checkpoint

RUN_FOLDER = "KD_CONVNEXT_RUN_FOLDER"
"""How the first process of a machine tells the others it starts where the run lies."""

TEACHER = "teacher"
"""Where the run of a teacher that is trained before its student lies in the student's."""

PRECISION = "KD_CONVNEXT_PRECISION"
"""How it tells them the arithmetic it has chosen, so that all compute alike."""


def terminated(command: str) -> Terminated:
    """Describes what a command that SIGTERM has ended has left, and how it goes on."""
    return Terminated(_left(command, "was told to stop (SIGTERM)"))


def interrupted(command: str) -> KeyboardInterrupt:
    """Describes the same of a command that was interrupted by hand."""
    return KeyboardInterrupt(str(_left(command, "was interrupted")))


def _left(command: str, how: str) -> Finding:
    folder = RunFolder(Path(os.environ.get(RUN_FOLDER, ".")))
    if command != "fit":
        return Finding(f"kd-convnext {command}", how, "Give the command again.")
    what = f"the fit {how} before it had ended"
    if not folder.last.exists():
        remedy = "No epoch was finished: give the command again, with another --trainer.default_root_dir."
        if (folder.path / TEACHER).is_dir():
            place = shlex.quote(str(folder.path))
            remedy = f"Its teacher is kept: the same command with --trainer.default_root_dir {place} goes on."
        return Finding(str(folder.path), what, remedy)
    command = command_line(["fit"], config=folder.config, ckpt_path=folder.last)
    remedy = f"What is finished stays; go on with: {command}"
    return Finding(str(folder.path), what, remedy)


def chosen_folder(config: Namespace) -> RunFolder:
    """Finds the run of a checkpoint, or names a new run; the other processes of the machine read the first one's.

    Args:
        config: Of the command.

    Raises:
        ConfigError: The folder that was asked for holds a run already, or nothing can be written there.
    """
    if config.ckpt_path is not None:
        folder = run_of_checkpoint(config.ckpt_path)
        require_writable(folder.path)
        os.environ[RUN_FOLDER] = str(folder.path)
        return folder
    if not is_first_process() and RUN_FOLDER in os.environ:
        return RunFolder(Path(os.environ[RUN_FOLDER]))
    if config.trainer.default_root_dir is not None:
        folder = RunFolder(Path(config.trainer.default_root_dir).expanduser())
        refuse_taken(folder.path, folder.checkpoints, "--trainer.default_root_dir")
        require_writable(folder.path)
    else:
        given = config.get("config") or []
        folder = new_run_folder("runs", config.name or (Path(str(given[0])).stem if given else "run"))
    os.environ[RUN_FOLDER] = str(folder.path)
    return folder


def refuse_taken(place: Path, checkpoints: Path, option: str) -> None:
    """Refuses a place in which a new fit would replace another's checkpoints.

    Args:
        place: As it was named.
        checkpoints: Folder of its checkpoints.
        option: That names another place, for the message.

    Raises:
        ConfigError: There are checkpoints.
    """
    last, best = checkpoints / "last.ckpt", checkpoints / "best.ckpt"
    if last.exists():
        remedy = f"Name another {option}, or go on with --ckpt_path {shlex.quote(str(last))}"
        raise ConfigError(Finding(str(place), "holds a run already", remedy))
    if best.exists():
        remedy = f"Name another {option}, or move {best} away: a fit would replace it."
        raise ConfigError(Finding(str(place), "holds the network of a run without its last.ckpt", remedy))


def earlier_precision(folder: RunFolder) -> str | None:
    """Finds what a fit that is resumed has computed in: it goes on so, whatever the machine."""
    if not folder.environment.is_file():
        return None
    remedy = "Move the file away; the precision is chosen anew then (--trainer.precision)."
    return cast("str | None", read_json(folder.environment, remedy).get("precision"))


def chosen_precision(device: str) -> str:
    """Chooses as the machine's first process did."""
    if not is_first_process() and PRECISION in os.environ:
        return os.environ[PRECISION]
    os.environ[PRECISION] = best_precision(device).value
    return os.environ[PRECISION]


def is_first_process() -> bool:
    """Returns whether this is the first process of the machine, or is alone."""
    return int(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", 0))) == 0


def launcher() -> str | None:
    """Names what has started this process as one of several; None where it is alone, or Lightning starts the others."""
    for name, environment in (("torchrun", TorchElasticEnvironment), ("SLURM", SLURMEnvironment)):
        if environment.detect() and environment().world_size() > 1:
            return name
    return None
