"""Finds the configurations shipped with the package: ``configs/...`` from any folder."""

from collections.abc import Callable, Collection, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from kd_convnext.common.files import is_special, read_bytes
from kd_convnext.common.nearest import did_you_mean
from kd_convnext.common.reading import yaml_of
from kd_convnext.common.words import given_options
from kd_convnext.errors import ConfigError, Finding

_PLACES = ("out", "_dir", "dirpath")
"""How options end that name a folder to write into, which is refused where it is tried."""

FIT = "fit_config"
"""Option of tools that takes the name of the fit's file that their other options came from."""


def shipped_file(name: str) -> str:
    """Finds a file named ``configs/...`` in the installed package where there is no such file here.

    Args:
        name: A path as typed.

    Returns:
        The path of the shipped file, or ``name`` itself.
    """
    path = Path(str(files("kd_convnext"))) / name
    return str(path) if name.startswith("configs/") and not Path(name).exists() and path.is_file() else name


def with_shipped_files(words: Sequence[str]) -> list[str]:
    """Replaces shipped configurations in a command line, also in ``--option=configs/...``.

    Args:
        words: The words of a command.

    Returns:
        The words with the files' paths.
    """
    found = []
    for word in words:
        option, _, name = word.rpartition("=")
        path = shipped_file(name)
        found.append(word if path == name else f"{option}={path}".lstrip("="))
    return found


def require_files(words: Sequence[str]) -> None:
    """Refuses pipes and devices in place of files that are read: more than once, and to an end that may never come.

    Args:
        words: The words of a command.

    Raises:
        ConfigError: The value of an option that takes a file is one.
    """
    for option, value in given_options(words):
        # Any group of options takes a file in place of its values.
        if value and not option.endswith(_PLACES) and is_special(value):
            remedy = "Write it into a file, and name that."
            raise ConfigError(Finding(f"{option} {value}", "is a pipe or a device, not a file", remedy))


def with_data_sections(
    words: Sequence[str], known: Collection[str], translate: Callable[[dict[str, Any]], dict[str, Any]] = dict
) -> list[str]:
    """Replaces each ``--config FILE`` of a fit by the tool's options in it.

    Args:
        words: The command's words.
        known: Names of the tool's options.
        translate: From the options of a data section to those by which a tool may know them.

    Returns:
        The words, with the options of a fit's ``data`` section in place of its file. A file without such a section
        stays: it holds the tool's own options.

    Raises:
        ConfigError: A file cannot be read, or is not YAML.
    """
    result: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        if name != "--config":
            result.append(word)
            continue
        file = value if equals else next(rest, "")
        options = data_options(file)
        if options is None:
            result += ["--config", file]
        else:
            options = {**translate(options), FIT: file}
            _refuse_misspelt(file, options, known)
            # The parser takes YAML text in place of a file's name.
            result += ["--config", yaml.safe_dump({key: options[key] for key in options if key in known})]
    return result


def _refuse_misspelt(file: str, options: Collection[str], known: Collection[str]) -> None:
    """Refuses an option of the data that is nearly one that is lacking: it would be left out without a word."""
    findings = []
    for name in options:
        lacking = [] if name in known else [one for one in known if one not in options]
        if meant := did_you_mean(name, lacking, cutoff=0.85):
            findings.append(Finding(f"{file}, data.{name}", "there is no such option", meant.strip()))
    if findings:
        raise ConfigError(findings)


def data_options(file: str) -> dict[str, Any] | None:
    """Reads a fit's configuration.

    Args:
        file: The YAML file.

    Returns:
        The data section's options, or None where there is no such section.

    Raises:
        ConfigError: The file cannot be read, or is not YAML.
    """
    try:
        content = yaml_of(read_bytes(file))
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
        raise ConfigError(Finding(f"--config {file}", what, "Name a YAML file.")) from error
    except ValueError as error:
        raise ConfigError(Finding(f"--config {file}", str(error), "Name a YAML file.")) from error
    data = content.get("data") if isinstance(content, dict) else None
    if not isinstance(data, dict):
        return None
    options = data.get("init_args", data)
    return dict(options) if isinstance(options, dict) else {}
