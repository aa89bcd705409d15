"""Reads checkpoints without unpickling, with one clear line for whatever is wrong with them."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from kd_convnext.checkpoints.upgrade import FORMAT_VERSION, KEY, upgraded
from kd_convnext.errors import CheckpointError, Finding

__all__ = ["FORMAT_VERSION", "KEY", "deployable_part", "is_distilled", "read_checkpoint"]

_BEFORE = {"TeacherModule": "backbone", "DistillModule": "student"}
"""The deployable part of checkpoints written before they named it."""


def read_checkpoint(path: str | Path, argument: str = "--ckpt_path") -> dict[str, Any]:
    """Reads a checkpoint of ours on the CPU, without ever unpickling objects.

    Args:
        path: The file.
        argument: Who asked, for the message.

    Returns:
        The Lightning checkpoint in the present format; ``[KEY]`` holds ``format_version``, ``kind`` (the module's class
        name) and ``card``.

    Raises:
        CheckpointError: The file is missing, is no checkpoint, is not ours, or is of a newer version.
    """
    file = Path(path).expanduser()
    remedy = "Give the checkpoints/best.ckpt of a run folder."
    if not file.is_file():
        raise CheckpointError(Finding(argument, f"there is no file {path}", remedy))
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise CheckpointError(
            Finding(argument, f"{path} is not a checkpoint that can be loaded safely ({reason})", remedy)
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(KEY), Mapping):
        raise CheckpointError(Finding(argument, f"{path} was not written by kd-convnext", remedy))
    version = checkpoint[KEY]["format_version"]
    if version > FORMAT_VERSION:
        what = f"{path} has format {version}, this version reads up to {FORMAT_VERSION}"
        raise CheckpointError(Finding(argument, what, "Update kd-convnext."))
    return upgraded(checkpoint)


def deployable_part(checkpoint: Mapping[str, Any]) -> str | None:
    """Names the part of the state dict, and the constructor's argument, that hold the network to deploy.

    Args:
        checkpoint: From `read_checkpoint`.

    Returns:
        ``backbone`` or ``student``, or what a subclass chose; None where nothing in it classifies.
    """
    own = checkpoint[KEY]
    part = own.get("answers_with") or _BEFORE.get(own.get("kind"))
    return part if part in checkpoint["hyper_parameters"] else None


def is_distilled(checkpoint: Mapping[str, Any]) -> bool:
    """Tells whether the network of a checkpoint was trained with a teacher.

    Args:
        checkpoint: From `read_checkpoint`.
    """
    own = checkpoint[KEY]
    return bool(own.get("distilled", own.get("kind") == "DistillModule"))
