"""Reads checkpoints without unpickling, with one clear line for whatever is wrong with them."""

import hashlib
import json
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kd_convnext.checkpoints.upgrade import FORMAT_VERSION, KEY, upgraded
from kd_convnext.common.files import mistaken_for_weights
from kd_convnext.common.reading import tensors_of
from kd_convnext.data.loading.card import DataCard
from kd_convnext.errors import CheckpointError, Finding

__all__ = ["FORMAT_VERSION", "KEY", "deployable_part", "is_distilled", "read_checkpoint", "require_file"]

_LARGEST_SIDE = 2**14
"""Pixels of a network's input: a larger one is no network's."""

_BEFORE = {"TeacherModule": "backbone", "DistillModule": "student"}
"""The deployable part of checkpoints written before they named it."""


_REMEDY = "Give the checkpoints/best.ckpt of a run folder."


def require_file(path: str | Path, argument: str = "--ckpt_path", remedy: str = _REMEDY) -> None:
    """Refuses a checkpoint that is not there.

    Args:
        path: The file.
        argument: The option that named it, for the message.
        remedy: What to give instead.

    Raises:
        CheckpointError: There is no such file.
    """
    if not Path(path).expanduser().is_file():
        raise CheckpointError(Finding(argument, f"there is no file {path}", remedy))


def read_checkpoint(path: str | Path, argument: str = "--ckpt_path", *, may_be_edited: bool = False) -> dict[str, Any]:
    """Reads a checkpoint of ours on the CPU, without ever unpickling objects.

    Args:
        path: The file.
        argument: Who asked, for the message.
        may_be_edited: Only warn where somebody has changed the weights since and saved them properly; a network that
            answers must be the one that was judged, a training may start from anything.

    Returns:
        The Lightning checkpoint in the present format; ``[KEY]`` holds ``format_version``, ``kind`` (the module's class
        name) and ``card``.

    Raises:
        CheckpointError: The file is missing, is no checkpoint, is not ours, is damaged, is of a newer version, or holds
            weights that are not finite.
    """
    file = Path(path).expanduser()
    remedy = _REMEDY
    if may_be_edited:
        remedy = (
            "Give a whole checkpoints/last.ckpt of a run; without one, begin anew from its best.ckpt: "
            "--model.backbone.weights (--model.student.weights) best.ckpt."
        )
    require_file(path, argument, remedy)
    try:
        checkpoint = tensors_of(file)
    except Exception as error:
        # A broken or foreign file ends in whatever its first bytes happen to trigger.
        mistaken = mistaken_for_weights(file)
        if mistaken:
            raise CheckpointError(Finding(argument, f"{path} {mistaken}", remedy)) from error
        # torch's own text advises to load objects, which may run anything.
        unsafe = isinstance(error, pickle.UnpicklingError)
        reason = "it holds objects or is torn" if unsafe else f"{error or type(error).__name__}".splitlines()[0][:120]
        raise CheckpointError(
            Finding(argument, f"{path} is not a checkpoint that can be loaded safely ({reason})", remedy)
        ) from error
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(KEY), Mapping):
        raise CheckpointError(Finding(argument, f"{path} was not written by kd-convnext", remedy))
    version = checkpoint[KEY].get("format_version")
    if not isinstance(version, int) or not all(isinstance(name, str) for name in checkpoint[KEY]):
        raise CheckpointError(Finding(argument, f"{path} does not say which format it has", remedy))
    if version > FORMAT_VERSION:
        what = f"{path} has format {version}, this version reads up to {FORMAT_VERSION}"
        raise CheckpointError(Finding(argument, what, "Update kd-convnext."))
    try:
        _require_whole(file, checkpoint, argument, may_be_edited=may_be_edited)
        checkpoint = upgraded({"hyper_parameters": {}, **checkpoint})
        _require_entries(checkpoint)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:120]
        what = f"{path} lacks entries of a checkpoint, or they are of another kind ({reason})"
        raise CheckpointError(Finding(argument, what, remedy)) from error
    return checkpoint


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
    # A module that can distil may have been fitted without a teacher; format 1 had one, later ones name all.
    return bool(own.get("distilled", own.get("kind") == "DistillModule") and own.get("teachers", own.get("teacher", 1)))


def _require_entries(checkpoint: Mapping[str, Any]) -> None:
    """Refuses entries of another type than is written; raises what the reader turns into a finding."""
    if not isinstance(checkpoint["hyper_parameters"], Mapping):
        raise TypeError("hyper_parameters is no table")
    own = checkpoint[KEY]
    for name, kind in (("kind", str), ("answers_with", str), ("weights_sha256", str), ("facts_sha256", str)):
        if own.get(name) is not None and not isinstance(own[name], kind):
            raise TypeError(f"{name} is a {type(own[name]).__name__}")
    if own.get("card") is not None:
        card = DataCard.from_state(own["card"])
        if not all(isinstance(name, str) for name in card.class_names) or not card.class_names:
            raise TypeError("class_names are no names")
        if len(set(card.class_names)) < len(card.class_names) or own.get("class_names", []) not in (
            [],
            list(card.class_names),
        ):
            raise ValueError("the lists of classes contradict each other")
        if not isinstance(card.crop, Mapping) or not isinstance(card.crop_identity, Mapping):
            raise TypeError("the crop is not described")
        if not isinstance(card.crop_identity["upscaler"], Mapping) or not isinstance(card.image_size, int):
            raise TypeError("the crop is not described")
        if not 0 < card.image_size <= _LARGEST_SIDE:
            raise ValueError(f"image_size is {card.image_size}")


def weights_sha256(state: Mapping[str, Any]) -> str:
    """Hashes weights: names, types, shapes and values, in the order of the names.

    Args:
        state: A state dict.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name]
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            # A clone: of one number, that was spread over channels, the stride is 0, which counts as contiguous.
            flat = value.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
            digest.update(flat.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def facts_sha256(checkpoint: Mapping[str, Any]) -> str:
    """Hashes what decides, beside the weights, what a network answers and what it may be judged on.

    Args:
        checkpoint: With its card, and the description of the network that answers.

    Returns:
        64 hexadecimal digits.
    """
    own = {name: value for name, value in checkpoint[KEY].items() if not name.endswith("_sha256")}
    network = (checkpoint.get("hyper_parameters") or {}).get(own.get("answers_with"))
    return hashlib.sha256(json.dumps(_plain([own, network]), sort_keys=True).encode()).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))  # their own order changes from process to process
    if isinstance(value, Tensor):
        return weights_sha256({"": value})
    return value if isinstance(value, str | int | float | None) else repr(value)


def _changed_part(checkpoint: Mapping[str, Any]) -> str | None:
    """Finds what is no longer as it was written, by the hashes; None where nothing is, or there are no hashes."""
    weights, facts = (checkpoint[KEY].get(name) for name in ("weights_sha256", "facts_sha256"))
    if weights is not None and weights != weights_sha256(checkpoint["state_dict"]):
        return "its weights have another SHA-256 than was stored with them"
    if facts is not None and facts != facts_sha256(checkpoint):
        return "what it says of its classes, photographs and network has another SHA-256 than was stored with it"
    return None


def _require_whole(file: Path, checkpoint: Mapping[str, Any], argument: str, *, may_be_edited: bool) -> None:
    """Refuses weights that are not those that were written, and weights that cannot answer."""
    state = checkpoint.get("state_dict")
    if not isinstance(state, Mapping):
        raise CheckpointError(Finding(argument, f"{file} holds no weights", "Give the best.ckpt of a run folder."))
    damaged = _damaged_part(file)
    changed = None if damaged is not None else _changed_part(checkpoint)
    if changed is not None and may_be_edited:
        warnings.warn(f"{file} was changed: {changed}", stacklevel=2)
        changed = None
    damaged = damaged or changed
    if damaged is not None:
        what = f"{file} is damaged ({damaged})"
        raise CheckpointError(Finding(argument, what, "Copy it again from where it was written, or train again."))
    require_finite(state, file, argument)


def require_finite(state: Mapping[str, Any], file: Path, argument: str) -> None:
    """Refuses weights that are not finite: their network would answer the first class, whatever it is shown.

    Args:
        state: A state dict.
        file: Where it was read.
        argument: Who asked, for the message.

    Raises:
        CheckpointError: One of them is not finite.
    """
    for name, value in state.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not bool(torch.isfinite(value).all()):
            what = f"{file} holds weights that are not finite ({name}): its training has diverged"
            raise CheckpointError(Finding(argument, what, "Train again with a lower learning rate (--model.optim.lr)."))


def _damaged_part(file: Path) -> str | None:
    """Compares each part of the file with its checksum, which torch writes and does not read."""
    try:
        with zipfile.ZipFile(file) as parts:
            name = parts.testzip()
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        return str(error)
    return None if name is None else f"the checksum of {name} is another"
