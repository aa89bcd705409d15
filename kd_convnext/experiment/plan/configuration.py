"""Merges, reads and hashes the configurations of cells."""

import copy
import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

from kd_convnext.checkpoints.flat_arguments import FLAT, modern_arguments
from kd_convnext.common.configs import shipped_file
from kd_convnext.common.files import read_bytes, sha256_of
from kd_convnext.common.reading import yaml_of
from kd_convnext.common.trust import require_trusted
from kd_convnext.data.loading.flat_options import layered, ungrouped
from kd_convnext.errors import ConfigError, Finding

_FILES = ("weights", "sr_weights", "sr_wdn_weights", "manifest", "unlabelled", "teacher_ckpt", "teacher_config")


_WHERE = {
    "data": ("cache_dir", "num_workers"),
    "trainer": ("logger", "enable_progress_bar", "default_root_dir"),
}
"""Options of a section that say where and how a cell runs, not what it computes; they are left out of its hash."""


_TALK = ("record", "header", "name")
"""Sections of the same kind."""


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lays one configuration over another: tables are merged, everything else is replaced.

    A list under a name that ends in ``+`` is appended to the list of that name, as `fit` does it.

    Args:
        below: The configuration.
        above: What replaces values of it.

    Returns:
        A new configuration.
    """
    result = copy.deepcopy(dict(below))
    for name, value in above.items():
        if isinstance(value, Mapping):
            before = result.get(name)
            result[name] = merged(before if isinstance(before, Mapping) else {}, value)
        elif str(name).endswith("+") and isinstance(value, list):
            own = name.removesuffix("+")
            before = result.get(own) or []  # one alone needs no list
            result[own] = [*(before if isinstance(before, list) else [before]), *copy.deepcopy(value)]
        else:
            result[name] = copy.deepcopy(value)
    return result


def modern(config: dict[str, Any]) -> dict[str, Any]:
    """Translates flat arguments of `DistillModule` and flat options of the data in a configuration.

    Args:
        config: A configuration of ``fit``.

    Returns:
        The same, or a copy in the new spelling.
    """
    if isinstance(config.get("data"), Mapping):
        config = config | {"data": layered(config["data"])}
    model = config.get("model")
    arguments = model.get("init_args") if isinstance(model, Mapping) else None
    if not isinstance(arguments, Mapping) or "backbone" in arguments or not any(name in FLAT for name in arguments):
        return config
    if str(model.get("class_path", "")).endswith("TeacherModule"):  # type: ignore[union-attr]
        return config
    return merged(config, {}) | {"model": {**model, "init_args": modern_arguments(arguments)}}  # type: ignore[dict-item]


def read_yaml(path: str) -> dict[str, Any]:
    """Reads a configuration.

    Args:
        path: A file; ``configs/...`` is found in the installed package too.

    Raises:
        ConfigError: The file is missing or no table of YAML.
    """
    try:
        found = yaml_of(read_bytes(shipped_file(path)))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())[:200]
        what = f"cannot be read ({reason})"
        raise ConfigError(Finding(path, what, "Name a configuration of fit.")) from error
    if not isinstance(found, dict):
        raise ConfigError(Finding(path, "is not a table of options", "Name a configuration of fit."))
    return found


def require_sections(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Checks that the sections of a configuration are tables, and that it names a model.

    Args:
        config: A configuration of ``fit``.
        where: What it is, for the message.

    Returns:
        The same, in which the model has ``init_args``, the trainer and the data are there.

    Raises:
        ConfigError: All sections of another form.
    """
    remedy = "Name a configuration of fit."
    sections = {name: config.get(name) or {} for name in ("trainer", "data", "model")}
    findings = [
        Finding(where, f"{name} is no table of options", remedy)
        for name, value in sections.items()
        if not isinstance(value, Mapping)
    ]
    model = sections["model"]
    arguments = (model.get("init_args") or {}) if isinstance(model, Mapping) else {}
    if isinstance(model, Mapping) and not isinstance(model.get("class_path"), str):
        findings.append(Finding(where, "it names no model.class_path", remedy))
    if not isinstance(arguments, Mapping):
        findings.append(Finding(where, "model.init_args is no table of options", remedy))
    for name in ("backbone", "student"):
        if isinstance(arguments, Mapping) and not isinstance(arguments.get(name) or {}, Mapping):
            findings.append(Finding(where, f"model.init_args.{name} is no table of options", remedy))
    if findings:
        raise ConfigError(findings)
    return {**config, **sections, "model": {**model, "init_args": dict(arguments)}}


def hash_of(config: Mapping[str, Any], teacher_hash: str | None) -> str:
    """Hashes what a cell computes.

    Args:
        config: Its configuration, without the teacher's checkpoint.
        teacher_hash: Hash of the cell that teaches it.

    Returns:
        16 hexadecimal digits. Files count by their content, so an experiment may move; where a cell runs (cache
        folder, loader processes, loggers) does not count.
    """
    if isinstance(config.get("data"), Mapping):
        # By the flat names: a cell's hash does not depend on the spelling of its configuration.
        config = {**config, "data": ungrouped(config["data"])}
    if teacher_hash is None and isinstance(config.get("teacher_config"), str):
        config = {**config, "teacher_config": _taught_by(config["teacher_config"])}
    counted = {
        name: {key: inner for key, inner in value.items() if key not in _WHERE.get(name, ())}
        if isinstance(value, Mapping)
        else value
        for name, value in config.items()
        if name not in _TALK
    }
    values = {"config": _computed(counted), "teacher": teacher_hash}
    text = json.dumps(values, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def _taught_by(path: str) -> Any:
    """Returns what a teacher's configuration says: a fit trains that teacher before its student."""
    try:
        return read_yaml(path)
    except ConfigError:
        return path  # the fit tells what is wrong with it


def _computed(value: Any, name: str = "") -> Any:
    if isinstance(value, Mapping):
        return {key: _computed(inner, _name(name, str(key))) for key, inner in value.items()}
    if name in _FILES and name != "teacher_config" and isinstance(value, str):
        path = Path(value)
        if path.is_file():
            return _content(str(path), path.stat().st_mtime_ns)
        if path.is_dir():
            return sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    return value


def _name(table: str, key: str) -> str:
    return "teacher_ckpt" if table == "teachers" else key  # by names of the user's own


@lru_cache(maxsize=256)
def _content(path: str, modified: int) -> str:
    return sha256_of(path)


def with_absolute_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Makes the paths of a configuration absolute: cells may run in other folders and on other hosts.

    Args:
        config: A configuration of ``fit``.

    Returns:
        The same with absolute paths.
    """
    return _absolute(config)


def _absolute(config: Mapping[str, Any], table: str = "") -> dict[str, Any]:
    result = {}
    for key, value in config.items():
        name = _name(table, str(key))
        if isinstance(value, dict):
            value = _absolute(value, name)
        elif name in (*_FILES, "cache_dir") and isinstance(value, str):
            path = Path(value).expanduser().absolute()
            # Weights may be named instead.
            value = str(path) if path.exists() or name == "cache_dir" else value
        result[key] = value
    return result


def is_distilling(class_path: str) -> bool:
    """Tells whether a module learns from a teacher.

    Args:
        class_path: ``kd_convnext.TeacherModule``, ``kd_convnext.DistillModule``, or the import path of a subclass.

    Raises:
        ImportError: There is no such module.
        AttributeError: The module has no such class.
        ValueError: The path names no module.
    """
    require_trusted({"class_path": class_path}, "model")
    module, _, name = class_path.rpartition(".")
    if module == "kd_convnext":
        return name == "DistillModule"  # known without loading torch
    return bool(getattr(import_module(module), name).distilled)
