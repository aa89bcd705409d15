"""Checks class paths of configurations and checkpoints: only classes of known or trusted packages may be named."""

import contextlib
import functools
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

from kd_convnext.common.files import read_bytes
from kd_convnext.common.reading import UnsoundYamlError, yaml_of
from kd_convnext.errors import ConfigError, Finding

TRUSTED = ("kd_convnext", "lightning", "torch", "timm", "torchmetrics", "albumentations")
"""Packages whose classes a configuration may name."""

_ADDED = "KD_CONVNEXT_TRUST"
"""How the packages added by ``--trust`` reach the processes that a command starts."""

_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")

_PLAIN = {"manifest", "cache_dir", "weights", "teacher_ckpt", "ckpt_path", "out", "sr_weights", "filename", "dirpath"}
_PLAIN |= {"config", "monitor", "name", "default_root_dir", "save_dir", "version", "project", "title", "small_config"}
_PLAIN |= {"distill_config", "group", "entity", "notes", "teacher_config", "unlabelled", "columns"}
"""Options that are never imported: files and names may look like a module's."""

_OF_DATA = {"sampling"}
"""Options of the data that take a class; all others are files, names and numbers."""


@contextlib.contextmanager
def trusting(words: Sequence[str]) -> Iterator[list[str]]:
    """Takes ``--trust PACKAGE`` out of a command line; within the block these packages are trusted too.

    Args:
        words: The words of a command.

    Yields:
        The other words.

    Raises:
        ConfigError: The name of the package is missing, or is none.
    """
    rest, packages, given = [], [], iter(words)
    for word in given:
        name, equals, value = word.partition("=")
        if name != "--trust":
            rest.append(word)
            continue
        package = value if equals else next(given, "")
        if not package.isidentifier():
            raise ConfigError(Finding("--trust", f"{package!r} is no package", "Name one package, such as my_code."))
        packages.append(package)
    before = os.environ.get(_ADDED)
    if packages:
        os.environ[_ADDED] = ",".join([*(before or "").split(","), *packages]).strip(",")
    try:
        yield rest
    finally:
        if packages:
            os.environ.pop(_ADDED)
            if before is not None:
                os.environ[_ADDED] = before


def guard_parsers() -> None:
    """Lets parsers import nothing but trusted packages, however a value is written, and keep free dictionaries data.

    `require_trusted_words` says what is wrong before anything is parsed; this holds also for what it does not see.
    """
    from jsonargparse import set_loader, set_parsing_settings

    set_loader("yaml", _sound_loader(), (yaml.YAMLError,))
    trusted = _trusted()
    _LET_IN.update(trusted)
    set_parsing_settings(
        instantiate_subclass_spec_in_any=False,
        import_path_denylist=["*", *sorted(_LET_IN - trusted)],
        import_path_allowlist=sorted(trusted),
    )


@functools.cache
def _sound_loader() -> Callable[[str], Any]:
    """Makes the parser's own reader of YAML refuse repeated names and endless aliases."""
    from jsonargparse import get_loader

    loaded = get_loader("yaml")

    def sound(text: str) -> Any:
        if any(mark in text for mark in "{&\n"):
            with contextlib.suppress(ValueError):
                try:
                    yaml_of(text)
                except UnsoundYamlError as error:
                    raise yaml.YAMLError(str(error)) from error
        return loaded(text)

    return sound


_LET_IN: set[str] = set()
"""Packages that earlier commands of this process trusted: the parser would remember them."""


DENIED = re.compile(r"Importing '([\w.]+)' is not allowed, denied by .*? to allow it\.")
"""What a parser says of a value that `guard_parsers` does not let it import."""


def denied_in(told: str, where: str) -> Finding | None:
    """Finds the untrusted package that a parser was not let import; None where it failed of something else.

    Args:
        told: What the parser says, on one line.
        where: The option.
    """
    return next((_untrusted_name(name, where) for name in DENIED.findall(told) if _exists(name.split(".")[0])), None)


def _untrusted_name(name: str, where: str) -> Finding:
    remedy = f"Trusted are {', '.join(sorted(_trusted()))}; add --trust {name.split('.')[0]} if you know what is in it."
    return Finding(where, f"names {name}, of a package that is not trusted", remedy)


def _trusted() -> set[str]:
    return {*TRUSTED, *filter(None, os.environ.get(_ADDED, "").split(","))}


def require_trusted_words(words: Sequence[str], *, callables: bool) -> None:
    """Checks a command line, and the YAML files that it names, before anything is imported for it.

    Args:
        words: The words of a command.
        callables: Whether options may take a function or a class by its bare name, as a training's may.

    Raises:
        ConfigError: Something names code that is not trusted; all of it together.
    """
    findings: list[Finding] = []
    key = "--config"
    for word in words:
        name, equals, value = word.partition("=")
        if word.startswith("--"):
            key = name
            if not equals:
                continue
        else:
            value = word
        findings += list(_untrusted(value, key.rstrip("+"), callables=callables, seen=frozenset()))
    if findings:
        raise ConfigError(findings)


def require_trusted(values: Any, where: str, *, callables: bool = True) -> None:
    """Checks the values of a configuration.

    Args:
        values: Mappings, lists and plain values.
        where: What they are of, for the message.
        callables: As for `require_trusted_words`.

    Raises:
        ConfigError: Something names code that is not trusted; all of it together.
    """
    findings = list(_untrusted(values, where, callables=callables, seen=frozenset()))
    if findings:
        raise ConfigError(findings)


def _untrusted(value: Any, where: str, *, callables: bool, seen: frozenset[str]) -> Iterator[Finding]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            place = f"--{key}" if where == "--config" else f"{where}.{key}"
            yield from _untrusted(inner, place, callables=callables, seen=seen)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _untrusted(inner, where, callables=callables, seen=seen)
    elif isinstance(value, str):
        yield from _untrusted_text(value.strip(), where, callables=callables, seen=seen)


def _untrusted_text(text: str, where: str, *, callables: bool, seen: frozenset[str]) -> Iterator[Finding]:
    """Checks a string, which the parser may take for a file of options, for YAML, or for a name to import."""
    if text.lower().endswith((".yaml", ".yml", ".json")) and text not in seen and _is_file(text):
        content = _yaml_of_file(text) if where == "--config" else _yaml(_read(text), text)
        yield from _untrusted(content, where, callables=callables, seen=seen | {text})
        return
    if "class_path" in text and not _DOTTED.fullmatch(text):
        inner = _yaml(text, where)
        if not isinstance(inner, str):
            yield from _untrusted(inner, where, callables=callables, seen=seen)
        return
    key = where.lstrip("-").rpartition(".")[2]
    if not _DOTTED.fullmatch(text):
        return
    if key == "class_path":
        yield from _of_name(text, where, classes=True)
    elif callables and key not in _PLAIN and (key in _OF_DATA or not where.startswith("--data.")):
        yield from _of_name(text, where, classes=where in ("--model", "--data"))


def _of_name(name: str, where: str, *, classes: bool) -> Iterator[Finding]:
    trusted = _trusted()
    root = name.split(".")[0]
    if root not in trusted:
        if classes or _exists(root):
            yield _untrusted_name(name, where)
        return
    found = _imported(name)
    home = str(getattr(found, "__module__", None) or root).split(".")[0]
    if found is not None and home not in trusted:
        yield Finding(where, f"names {name}, which is of {home}, not of {root}", "Name a class by its own package.")
    elif found is not None and classes and not isinstance(found, type):
        yield Finding(where, f"names {name}, which is a function, not a class", "Name a class.")


def _imported(name: str) -> Any:
    """Finds an object of a trusted package; None where there is none, which the parser then says."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for part in parts[count:]:
            found = getattr(found, part, None)
        return found
    return None


def _exists(root: str) -> bool:
    try:
        return importlib.util.find_spec(root) is not None
    except (ImportError, ValueError):
        return True


def _is_file(text: str) -> bool:
    try:
        return Path(text).is_file()
    except (OSError, ValueError):
        return False


_SOUND = "Name everything once, and let no part stand for one that holds it."


def _read(path: str) -> str:
    try:
        return read_bytes(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(Finding(path, f"cannot be read ({error})", "Name a YAML file in UTF-8.")) from error


def _yaml_of_file(path: str) -> Any:
    """Reads a file of options; what the parser would do with one that is no YAML is not in our hands."""
    try:
        return yaml_of(_read(path))
    except UnsoundYamlError as error:
        raise ConfigError(Finding(f"--config {path}", str(error), _SOUND)) from error
    except ValueError as error:
        raise ConfigError(Finding(f"--config {path}", str(error), "Name a YAML file.")) from error


def _yaml(text: str, where: str) -> Any:
    try:
        return yaml_of(text)
    except UnsoundYamlError as error:  # the parser would take it
        raise ConfigError(Finding(where, str(error), _SOUND)) from error
    except ValueError:
        # The parser says so in its own words; nothing of it can be imported.
        return ""
