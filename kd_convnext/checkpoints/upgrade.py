"""Brings checkpoints of older formats to the present one."""

from collections.abc import Mapping
from typing import Any

from kd_convnext.checkpoints.flat_arguments import modern_arguments

KEY = "kd_convnext"
"""Where our own entries lie in a Lightning checkpoint."""

FORMAT_VERSION = 2
"""Raised when a checkpoint can no longer be read by older versions; older ones keep loading."""

_OLD = "regressors.convolutions."
_NEW = "objective.terms.feature.projector."


def upgraded(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a checkpoint in the present format; one that has it already is returned alike.

    Format 1 had flat arguments of `DistillModule`, and its 1x1 convolutions beside the student.

    Args:
        checkpoint: A checkpoint of ours; not changed.

    Returns:
        A new dictionary that shares the tensors.
    """
    result = dict(checkpoint)
    own = dict(result[KEY])
    if own["format_version"] >= FORMAT_VERSION:
        return result
    if own.get("distilled", own["kind"] == "DistillModule") and "student" in result["hyper_parameters"]:
        arguments = dict(result["hyper_parameters"])
        result["hyper_parameters"] = modern_arguments(arguments)
        result["state_dict"] = {_renamed(name): value for name, value in result["state_dict"].items()}
        _add_widths(own, int(arguments["num_classes"]))
    own["format_version"] = FORMAT_VERSION
    result[KEY] = own
    return result


def _renamed(name: str) -> str:
    return _NEW + name.removeprefix(_OLD) if name.startswith(_OLD) else name


def _add_widths(own: dict[str, Any], classes: int) -> None:
    teacher = own.pop("teacher", None)
    own["teachers"] = {} if teacher is None else {"teacher": teacher}
    student, others = own.pop("student_channels", []), own.pop("teacher_channels", [])
    own["widths"] = {"student": [classes, student, 0], "teachers": {"teacher": [classes, others, 0]}}
    own["taps"] = {"student": own.pop("student_taps", []), "teachers": {"teacher": own.pop("teacher_taps", [])}}
