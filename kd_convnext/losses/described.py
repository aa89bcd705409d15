"""Writes objectives and terms into checkpoints as class path and plain arguments, and builds them again."""

import inspect
import sys
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any, Self, TypedDict, TypeVar, cast

from kd_convnext.errors import CheckpointError, ConfigError, Finding

PUBLIC = "kd_convnext.losses"
"""The package whose classes are named by their public name."""


class Description(TypedDict):
    """Records the class and the arguments an object was made with.

    Attributes:
        class_path: Where its class lies.
        init_args: Arguments by name, as plain values; nested objects are descriptions too.
    """

    class_path: str
    init_args: dict[str, Any]


class Described:
    """Remembers the arguments of its construction; subclasses need do nothing for it."""

    _arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keeps the arguments before the constructor sees them; copying and unpickling give none."""
        made = super().__new__(cls)
        signature = inspect.signature(cls.__init__)
        try:
            bound = signature.bind_partial(made, *args, **kwargs)
        except TypeError:
            return made  # the constructor says what is wrong
        bound.apply_defaults()
        _, *rest = bound.arguments.items()  # self
        arguments: dict[str, Any] = {}
        for name, value in rest:
            further = signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
            arguments.update(value if further else {name: value})
        object.__setattr__(made, "_arguments", arguments)
        return made

    @property
    def description(self) -> Description:
        """Class path and plain arguments, from which `built` makes an equal object without its weights.

        Raises:
            ConfigError: An argument is neither a plain value nor described itself.
        """
        path = class_path(type(self))
        arguments = {name: plain_value(value, f"{path}.{name}") for name, value in self._arguments.items()}
        return {"class_path": path, "init_args": arguments}


Kind = TypeVar("Kind", bound=Described)

Class = TypeVar("Class")


def built(value: Any, base: type[Kind]) -> Kind:
    """Builds an objective or a term from a checkpoint's description.

    No module is imported for it: only the package's own classes are built, and those that are already imported.

    Args:
        value: A description, or the object itself.
        base: What it must be.

    Returns:
        The object.

    Raises:
        CheckpointError: Its class is unknown here, or no subclass of ``base``.
    """
    if isinstance(value, base):
        return value
    kind = known_class(str(value["class_path"]), base)
    return kind(**{name: _rebuilt(given) for name, given in value.get("init_args", {}).items()})


def known_class(path: str, base: type[Class], file: str = "this checkpoint") -> type[Class]:
    """Finds a class by its path without importing anything.

    Args:
        path: Such as ``kd_convnext.losses.Eq5`` or ``my_terms.Decoupled``.
        base: What it must be a subclass of.
        file: Who names it, for the message.

    Returns:
        The class.

    Raises:
        CheckpointError: There is no such class among those imported.
    """
    module, _, name = path.rpartition(".")
    holders = [sys.modules.get(module)]
    if module.partition(".")[0] == PUBLIC.partition(".")[0]:
        holders.append(sys.modules.get(PUBLIC))
    for holder in holders:
        found = getattr(holder, name, None)
        if isinstance(found, type) and issubclass(found, base):
            return found
    what = f"it is made with {path}, which is not among the imported subclasses of {base.__name__}"
    remedy = f"If you trust it, import {module or path} before, or give the config.yaml of its run with --config."
    raise CheckpointError(Finding(file, what, remedy))


def class_path(kind: type) -> str:
    """Returns where a class lies; of our losses and modules the public name."""
    public = kind.__module__.startswith(PUBLIC + ".")
    module = PUBLIC if public else "kd_convnext" if kind.__module__.startswith("kd_convnext.") else kind.__module__
    return f"{module}.{kind.__qualname__}"


def plain_value(value: Any, where: str) -> Any:
    """Converts a value to what a checkpoint may hold.

    Args:
        value: A plain value, a dataclass, a described object, or lists and dictionaries of them.
        where: Who gave it, for the message.

    Returns:
        Numbers, texts, lists and dictionaries.

    Raises:
        ConfigError: It is something else.
    """
    if isinstance(value, Described):
        return value.description
    if is_dataclass(value) and not isinstance(value, type):
        return plain_value(asdict(value), where)
    if isinstance(value, Mapping):
        return {str(name): plain_value(given, f"{where}.{name}") for name, given in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(given, where) for given in value]
    if value is None or isinstance(value, str | int | float | bool):
        return value
    what = f"{type(value).__name__} cannot be kept in a checkpoint"
    raise ConfigError(Finding(where, what, "Use numbers, texts, lists, dictionaries, dataclasses, or terms."))


def _rebuilt(value: Any) -> Any:
    if isinstance(value, Mapping):
        if set(value) == {"class_path", "init_args"}:
            return built(cast(Description, value), Described)
        return {name: _rebuilt(given) for name, given in value.items()}
    return [_rebuilt(given) for given in value] if isinstance(value, list) else value
