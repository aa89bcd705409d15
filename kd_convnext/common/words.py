"""Orders the words of a command line: options that are typed overrule files of options, wherever they stand."""

import inspect
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kd_convnext.common.files import read_bytes
from kd_convnext.common.reading import yaml_of
from kd_convnext.errors import ConfigError, Finding

_SECTIONS = ("--model", "--data", "--trainer", "--checkpoint", "--record", "--header")
"""Options that take a file or a class, whose single options may be typed as well."""

_NULL = frozenset({"null", "Null", "NULL", "~"})

_TRUTH = frozenset({"true", "false", "yes", "no", "null"})


def with_home(words: Sequence[str]) -> list[str]:
    """Replaces ``~`` at the begin of a path by the home folder, also in ``--option=~/path``, where shells leave it.

    Args:
        words: The words of a command.

    Returns:
        The words with whole paths.

    Raises:
        RuntimeError: There is no user of the name behind ``~``.
    """
    found = []
    for word in words:
        option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
        # A lone "~" is YAML's word for nothing.
        found.append(f"{option}{equals}{Path(value).expanduser()}" if re.match(r"~[^/]*/", value) else word)
    return found


def refuse_empty(words: Sequence[str]) -> None:
    """Refuses options with nothing behind them, as an unset variable of a shell leaves them.

    As a path nothing is the working folder, which would be read or written instead.

    Args:
        words: The words of a command.

    Raises:
        ConfigError: There are such options: all of them.
    """
    pairs = zip(words, [*words[1:], "."], strict=False)
    empty = [word.rstrip("=") for word, after in pairs if word[:2] == "--" and (word[-1] == "=" or after == "")]
    if empty:
        what = "it is empty, as an unset variable of the shell is"
        raise ConfigError(Finding(name, what, "Give a value, or leave it out.") for name in empty)


def files_first(words: Sequence[str]) -> list[str]:
    """Puts files of options before the options: a later word overrules an earlier one.

    Args:
        words: The options of a command.

    Returns:
        ``--config FILE`` in their order, then whole sections (``--model NAME``), then the single options.
    """
    files: list[str] = []
    sections: list[str] = []
    rest: list[str] = []
    given = iter(words)
    for word in given:
        name = word.partition("=")[0]
        target = files if name == "--config" else sections if name in _SECTIONS else rest
        target.append(word)
        if target is not rest and "=" not in word:
            target += [value for value in (next(given, None),) if value is not None]
    return [*files, *sections, *rest]


def command_line(words: Sequence[str], **options: object) -> str:
    """Writes a command line as it can be pasted into a shell.

    Args:
        words: Command and folders.
        **options: Those that are not None are written.
    """
    given = [str(part) for name, value in options.items() if value is not None for part in (f"--{name}", value)]
    return shlex.join(["kd-convnext", *words, *given])


def flags_set(words: Sequence[str], parameters: Mapping[str, inspect.Parameter]) -> list[str]:
    """Gives switches that are typed without a value the value true: ``--dry_run``.

    Args:
        words: The options of a tool.
        parameters: Of its function; those of type bool are switches.

    Returns:
        The words, such as ``--dry_run=true``.
    """
    switches = {f"--{name}" for name, one in parameters.items() if one.annotation in (bool, bool | None)}
    return [
        f"{word}=true" if word in switches and after.lower() not in _TRUTH else word
        for word, after in zip(words, [*words[1:], ""], strict=False)
    ]


def without_foreign_arguments(words: Sequence[str]) -> tuple[list[str], str | None]:
    """Drops the arguments of a network where a later word names another network.

    Args:
        words: The options of a fit, ordered by `files_first`.

    Returns:
        The words, with an empty ``args`` for each network that was renamed without arguments of its own, and a line
        that says so.
    """
    added, told = [], []
    options = _typed(words)
    for part in ("backbone", "student"):
        name: str | None = None
        arguments: Any = None
        dropped: str | None = None
        keys = (f"--model.{part}", f"--model.init_args.{part}")
        sources = [_network(content, part) for content in _files(words)]
        # What is typed holds against all files.
        named = [options[f"{key}.name"] for key in keys if f"{key}.name" in options]
        own = any(option.rstrip("+").startswith(tuple(f"{key}.args" for key in keys)) for option in options)
        own |= any(key in options for key in keys)
        sources.append(({"name": named[-1]} if named else {}) | ({"args": {"": ""}} if own else {}))
        for source in sources:
            renamed = source.get("name") is not None and name is not None and source["name"] != name
            if renamed and arguments and not source.get("args"):
                dropped, arguments = name, None
            elif source.get("args"):
                dropped, arguments = None, source["args"]
            name = source.get("name") or name
        if dropped is not None:
            added.append(f"--model.{part}.args={{}}")
            told.append(f"{name} is built as published: the arguments in the configuration are those of {dropped}")
    return [*words, *added], "; ".join(told) or None


def without_nested_nulls(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Takes ``null`` for options of a model's specifications out, which jsonargparse reads as the text "None".

    Args:
        words: The options of a command.

    Returns:
        The words without them, and the options that are to be null: ``model.student.weights``.

    Raises:
        ConfigError: A configuration is to be printed, which happens before they are set.
    """
    kept, nulls = list[str | None](words), list[str]()
    for position, word in enumerate(words):
        option, equals, value = word.partition("=")
        name = option.removeprefix("--").replace(".init_args.", ".")
        if not option.startswith("--model."):
            continue
        nulls = [earlier for earlier in nulls if not f"{earlier}.".startswith(f"{name}.")]  # the last word holds
        if name.count(".") > 1 and (value if equals else (*words, "", "")[position + 1]) in _NULL:
            nulls.append(name)
            kept[position : position + (1 if equals else 2)] = [None] * (1 if equals else 2)
    if nulls and any(word.startswith("--print_config") for word in words):
        raise ConfigError(Finding(f"--{nulls[0]}", "null cannot be printed", "Write it into the printed file."))
    return [word for word in kept if word is not None], nulls


def set_null(config: Any, option: str) -> None:
    """Sets an option of a parsed model to None.

    Args:
        config: Namespace of the command.
        option: From `without_nested_nulls`.

    Raises:
        ConfigError: There is no such option.
    """
    _, *path, last = option.split(".")
    found: Any = config.model.get("init_args")
    for name in path:
        found = found.get(name) if hasattr(found, "get") else None
        found = found.get("init_args", found) if hasattr(found, "get") else found
    if not hasattr(found, "get") or last not in found:
        raise ConfigError(Finding(f"--{option}", "there is nothing of this name to set to null", "Leave it out."))
    found[last] = None


def _typed(words: Sequence[str]) -> dict[str, str]:
    found = {}
    for position, word in enumerate(words):
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            following = words[position + 1] if position + 1 < len(words) else ""
            found[name] = value if equals else following
    return found


def _files(words: Sequence[str]) -> list[Any]:
    names = [value for name, value in _pairs(words) if name == "--config"]
    contents = []
    for name in names:
        try:
            contents.append(yaml_of(read_bytes(name)))
        except (OSError, ValueError):
            contents.append(None)  # the parser says it
    return contents


def given_options(words: Sequence[str]) -> list[tuple[str, str]]:
    """Pairs options with their values, which follow them or an equals sign; "" where there is none.

    Args:
        words: The words of a command.
    """
    return [pair for pair in _pairs(words) if pair[0].startswith("--")]


def _pairs(words: Sequence[str]) -> list[tuple[str, str]]:
    return [
        (name, value if equals else (words[position + 1] if position + 1 < len(words) else ""))
        for position, word in enumerate(words)
        for name, equals, value in [word.partition("=")]
    ]


def _network(content: Any, part: str) -> dict[str, Any]:
    for key in ("model", "init_args", part):
        if not isinstance(content, Mapping):
            return {}
        if key == "init_args" and key not in content:
            continue
        content = content.get(key)
    return dict(content) if isinstance(content, Mapping) else {}
