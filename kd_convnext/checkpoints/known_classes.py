"""Refuses checkpoints that name classes which nobody has imported: reading a file must not run code."""

from collections.abc import Mapping
from typing import Any

from kd_convnext.losses.described import Described, known_class


def check_classes(arguments: Mapping[str, Any], file: str) -> None:
    """Checks all classes of an objective.

    Args:
        arguments: Of a module, as a checkpoint keeps them.
        file: The checkpoint, for the message.

    Raises:
        CheckpointError: A class is unknown here.
    """
    _check_objects(arguments.get("objective"), file)


def _check_objects(value: Any, file: str) -> None:
    if isinstance(value, Mapping):
        if set(value) == {"class_path", "init_args"}:
            known_class(str(value["class_path"]), Described, file)
        for inner in value.values():
            _check_objects(inner, file)
    elif isinstance(value, list):
        for inner in value:
            _check_objects(inner, file)
