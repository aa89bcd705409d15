"""Rewrites command lines that name options of the data as they were before they had groups."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import yaml

from kd_convnext.common.configs import with_data_sections
from kd_convnext.common.files import read_bytes
from kd_convnext.common.reading import yaml_of
from kd_convnext.data.loading.flat_options import BALANCED, CROPS, FLAT, grouped, spelling, ungrouped, warn_of_flat
from kd_convnext.errors import ConfigError, Finding


def grouped_words(words: Sequence[str], prefix: str, names: Collection[str] = FLAT) -> tuple[list[str], list[str]]:
    """Rewrites flat options.

    Args:
        words: Options as typed, ``--data.store_size 64`` or ``--data.store_size=64``.
        prefix: What stands before an option's name: ``--data.`` or ``--``.
        names: The flat options of the command.

    Returns:
        The words in the present spelling, and the flat names that were among them.

    Raises:
        ConfigError: The value of a switch is not YAML.
    """
    found: list[str] = []
    old: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        option = name.removeprefix(prefix)
        if not name.startswith(prefix) or option not in names:
            found.append(word)
            continue
        value = value if equals else next(rest, "")
        old.append(option)
        if option != BALANCED:
            found.append(f"{prefix}{spelling(option)}={value}")
        elif switched_on(value, f"{prefix}{option}"):
            found.append(f"{prefix}{spelling(option)}=balanced")
    return found, old


def switched_on(value: str, option: str) -> bool:
    """Reads a switch of the command line.

    Args:
        value: Such as ``false``, or a number: 0 is off.
        option: Its name, for the message.

    Raises:
        ConfigError: The value is not YAML.
    """
    try:
        return bool(yaml_of(value))
    except ValueError as error:
        raise ConfigError(Finding(option, f"{value!r} {error}", "Write true or false.")) from error


def tool_words(words: Sequence[str], known: Collection[str], command: str) -> list[str]:
    """Takes a tool's options from files of fits, and rewrites its flat options of crops; warns once of those.

    Args:
        words: The tool's words.
        known: Names of its options.
        command: The tool's name.

    Returns:
        The words in the present spelling.

    Raises:
        ConfigError: A file cannot be read, or is not YAML.
    """
    old: list[str] = []

    def translated(options: dict[str, Any]) -> dict[str, Any]:
        if "crops" in known:
            old.extend(name for name in options if name in CROPS)
        crops = grouped(options).get("crops")
        return ungrouped(options) | ({"crops": crops} if crops else {})

    found = with_data_sections(words, known, translated)
    if "crops" in known:
        found, typed = grouped_words(list(_modern_files(found, old)), "--", CROPS)
        old += typed
    if old:
        warn_of_flat(old, command)
    return found


def _modern_files(words: Sequence[str], old: list[str]) -> Iterator[str]:
    """Replaces files of the tool's own options by their text in the present spelling, where it differs."""
    for before, word in zip(["", *words], words, strict=False):
        content = _content(word) if before == "--config" else None
        names = [name for name in content or {} if name in CROPS]
        old.extend(names)
        yield yaml.safe_dump(grouped(content)) if content and names else word


def _content(given: str) -> dict[str, Any] | None:
    """Reads a file of options, or its text; what cannot be read is left to the parser."""
    try:
        content = yaml_of(given if "\n" in given else read_bytes(given))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
