"""Translates the flat arguments that DistillModule had before its objective was built of terms."""

import warnings
from collections.abc import Mapping
from typing import Any

from kd_convnext.errors import ConfigError, Finding

EQ5 = "kd_convnext.losses.Eq5"

TERMS = ("feature", "soft", "focal")
"""Switches: false drops the term."""

NUMBERS = (
    *("alpha", "beta", "temperature", "scale_by_t2", "gamma", "feature_distance", "feature_reduction"),
    *("stages", "stage_epochs"),
)
"""Arguments of `Eq5` under the same names."""

TAPS = {"student_taps": "student", "teacher_taps": "teacher"}
"""Fields of `TapSpec`."""

FLAT = (*TERMS, *NUMBERS, *TAPS)


def modern_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Translates flat arguments of `DistillModule` and leaves all others as they are.

    Args:
        arguments: Arguments by name; an objective among them must be Eq. 5 if there are flat ones, which win.

    Returns:
        New arguments, with ``objective`` and ``taps`` in place of the flat ones.

    Raises:
        ConfigError: Flat arguments beside another objective than Eq. 5.
    """
    result = {name: value for name, value in arguments.items() if name not in FLAT}
    flat = {name: value for name, value in arguments.items() if name in FLAT}
    if numbers := {name: value for name, value in flat.items() if name in (*TERMS, *NUMBERS)}:
        result["objective"] = _eq5(result.get("objective"), numbers)
    taps = {TAPS[name]: value for name, value in flat.items() if name in TAPS}
    if any(value is not None for value in taps.values()):
        given = result.get("taps")
        result["taps"] = {**(given if isinstance(given, Mapping) else {}), **taps}
    return result


def _eq5(given: Any, flat: Mapping[str, Any]) -> dict[str, Any]:
    path = str(given["class_path"]) if isinstance(given, Mapping) else EQ5 if given is None else type(given).__name__
    if path.rpartition(".")[2] != "Eq5" or not (given is None or isinstance(given, Mapping)):
        what = f"{', '.join(flat)} belong to Eq5, and the objective is {path}"
        raise ConfigError(Finding("--model.objective", what, "Give them to the objective's terms."))
    options = dict(given.get("init_args") or {}) if given is not None else {}
    options |= {name: value for name, value in flat.items() if name in NUMBERS}
    dropped = {name for name in options.get("drop") or () if flat.get(name) is not True}
    dropped |= {name for name in TERMS if flat.get(name) is False}
    if dropped or "drop" in options:
        options["drop"] = [name for name in TERMS if name in dropped]
    return {"class_path": path, "init_args": options}


def warn_of_flat(names: list[str]) -> None:
    """Warns once of arguments in their old spelling.

    Args:
        names: The flat arguments that were given.
    """
    spelled = [f"objective.{name}" for name in names if name in NUMBERS]
    spelled += [f"objective.drop: [{name}]" for name in names if name in TERMS]
    spelled += [f"taps.{TAPS[name]}" for name in names if name in TAPS]
    text = f"{', '.join(names)} of DistillModule are spelled {', '.join(spelled)} now; the old spelling will go"
    warnings.warn(text, UserWarning, stacklevel=3)
