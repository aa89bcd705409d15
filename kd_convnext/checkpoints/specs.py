"""Specifications from whatever the command line, a notebook or a checkpoint gives."""

from collections.abc import Mapping
from typing import Any, TypeVar

Spec = TypeVar("Spec")


def spec_of(kind: type[Spec], value: Any) -> Spec:
    """Returns a specification.

    Args:
        kind: Its dataclass.
        value: One of them, its fields by name (as a checkpoint keeps them), or None for the defaults.
    """
    if value is None:
        return kind()
    if isinstance(value, Mapping):
        # Lists, because YAML and checkpoints know no tuples.
        return kind(**{name: tuple(v) if isinstance(v, list) else v for name, v in value.items()})
    return value  # type: ignore[no-any-return]
