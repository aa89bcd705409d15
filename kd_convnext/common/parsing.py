"""Turns errors of argument parsers and file systems into exit codes and one clear line."""

import contextlib
import errno
import os
import re
import sys
import warnings
from argparse import ArgumentError, ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from kd_convnext.common.console import complain, fitted
from kd_convnext.common.files import write_finding
from kd_convnext.common.nearest import did_you_mean
from kd_convnext.common.process import Stopped
from kd_convnext.common.refusals import refusal
from kd_convnext.common.trust import DENIED, denied_in
from kd_convnext.errors import ConfigError, Finding, KDConvNeXtError

PARSER: dict[str, Any] = {"exit_on_error": False, "allow_abbrev": False}
"""Options of every parser: errors come as exceptions, and no option is guessed from its first letters."""

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO)
"""What is wrong with a disk: a user can mend it, whether the error names a place or not."""

_LOOP = "Symlink loop from "
"""How Python begins where links lead nowhere but to each other."""

_NO_PATH = {
    "embedded null byte": ("holds a NUL character, which no path has", "Take it out."),
    "not text": ("its name is not in UTF-8", "Rename it, or name another."),
    "Could not determine home directory.": ("there is no such user", "Write ./~ for a folder of that name."),
}
"""What Python raises, beside an OSError, where a text can be no path; why, and what to do."""


@contextlib.contextmanager
def parsing(command: str, known: Iterable[str] = ()) -> Iterator[None]:
    """Translates what an argument parser raises into one clear line.

    Args:
        command: The command's name, for the message.
        known: Its options, ``--name``, to find the one that was meant.

    Raises:
        ConfigError: The words could not be understood.
    """
    try:
        yield
    except (ArgumentError, ArgumentTypeError) as error:
        helped = f"See kd-convnext {command} --help."
        told = " ".join(str(error).split())
        option = re.search(_KEY, told)
        if denied := denied_in(told, f"--{option[1]}" if option else f"kd-convnext {command}"):
            raise ConfigError(denied) from error
        if found := refusal(str(error)):
            raise ConfigError(replace(found, remedy=found.remedy + helped)) from error
        told = _LACKING.sub(lambda found: found[0].replace(found[1], _as_options(found[1], known)), told)
        grid = "--config configs/paper.yaml names methods and settings. " if "--grid.methods" in told else ""
        remedy = f"{_meant(told, known)}{grid}{helped}"
        raise ConfigError(Finding(f"kd-convnext {command}", _readable(told), remedy)) from error


_LONGEST = 400
_KEY = r'Parser key "([^"]+)"'


def _readable(told: str) -> str:
    """Writes in words what a parser says of options it does not know, and of what it cannot import."""
    told = DENIED.sub(r"\1 is nothing to import", told)
    told = re.sub(r"'utf-8' codec can't encode .*? surrogates not allowed", "its name is not in UTF-8: rename it", told)
    told = re.sub(r"Subcommand '\w+' does not accept option '([\w.]+)'", r"there is no option --\1", told)
    told = re.sub(r"Group '([\w.]+)' does not accept option '([\w.]+)'", r"there is no option --\1.\2", told)
    told = re.sub(r"unrecognized arguments: (--[\w.]+)\S*$", r"there is no option \1", told)
    told = re.sub(r"Unexpected config: (.*)", r"\1 is no file of options", told)
    told = re.sub(_KEY, r"--\1", told)
    return told if len(told) <= _LONGEST else f"{told[:_LONGEST]} ..."


_LACKING = re.compile(r"arguments are required: ([\w., ]+)")


def _as_options(names: str, known: Iterable[str]) -> str:
    """Writes names of options as they are typed; a word without a name stays."""
    return ", ".join(f"--{name}" if f"--{name}" in known else name for name in names.split(", "))


_UNKNOWN = (
    r"unrecognized arguments: --(?P<name>[\w.]+)",
    r"Group '(?P<group>[\w.]+)' does not accept option '(?P<name>[\w.]+)'",
    r"Option '(?P<name>[\w.]+)' is not accepted",
    r"does not accept option '(?P<name>[\w.]+)'",
)
"""What the parser says of an option it does not know."""


def _meant(text: str, known: Iterable[str]) -> str:
    """Names the option that is nearest to an unknown one; empty where none is near."""
    for pattern in _UNKNOWN:
        found = re.search(pattern, text)
        if found:
            group = found.groupdict().get("group")
            name = f"--{group}.{found['name']}" if group else f"--{found['name']}"
            begun = [option for option in known if option.startswith(name)]
            return f"Did you mean {begun[0]}? " if len(begun) == 1 else did_you_mean(name, known, cutoff=0.75)
    return ""


def require_at_least(**options: tuple[int | None, int]) -> None:
    """Checks counts and seeds of a tool before it begins.

    Args:
        options: The value of each option, None where it was left out, and the least that it may be.

    Raises:
        ConfigError: Some are less: all of them.
    """
    findings = [
        Finding(f"--{name}", f"{value} is less than {least}", f"Give {least} or more.")
        for name, (value, least) in options.items()
        if value is not None and value < least
    ]
    if findings:
        raise ConfigError(findings)


def warn_of_idle(**options: tuple[bool, str]) -> None:
    """Warns of options of a tool that have no effect beside the others, instead of dropping them in silence.

    Args:
        options: Whether each was given in vain, and beside what: ``without --prune``.
    """
    for name, (idle, why) in options.items():
        if idle:
            warnings.warn(f"--{name} has no effect {why}", stacklevel=3)


def exit_code(run: Callable[[], int], words: Sequence[str]) -> int:
    """Runs a command and turns warnings and the errors of its user into lines on stderr and an exit code.

    Args:
        run: The command; returns its exit code.
        words: Its name and options, for the message.

    Returns:
        What the command returns, 2 for bad input, 130 when interrupted, 143 when told to stop.
    """
    warnings.formatwarning = lambda message, *_, **__: fitted(f"warning: {message}\n", sys.stderr)
    try:
        return run()
    except KDConvNeXtError as error:
        complain(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has enough of it; nothing more may be written, at exit neither.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        # An error that names a place is about that place.
        if error.filename is None and error.errno not in _DISK:
            raise
        complain(f"error: {_of_place(Path(str(error.filename or '.')), error)}")
        return 2
    except (ValueError, RuntimeError) as error:
        finding = _no_path(error, words)
        if finding is None:
            raise
        complain(f"error: {finding}")
        return 2
    except Stopped as error:
        complain("error: told to stop (SIGTERM): what is finished stays; give the command again")
        return error.exit_code
    except KeyboardInterrupt as error:
        how = "go on with --resume true" if words[:1] in (["paper"], ["demo"]) else "give the command again"
        complain(f"interrupted: {str(error) or f'what is finished stays; {how}'}")
        return 130


def _of_place(path: Path, error: OSError) -> Finding:
    hidden = os.path.lexists(path) or not os.access(path.parent, os.X_OK)
    if error.errno == errno.EACCES and hidden and not os.access(path, os.R_OK):
        remedy = "Give yourself permission to read it and its folder."
        return Finding(str(path), f"cannot be read ({error.strerror})", remedy)
    return write_finding(path, error)


def _no_path(error: Exception, words: Sequence[str]) -> Finding | None:
    """Names the words that can be no path, where an error says so; where none is, one of a configuration was meant."""
    told = "not text" if isinstance(error, UnicodeEncodeError) and _not_text(words) else str(error)
    if told.startswith(_LOOP):
        return Finding(told.removeprefix(_LOOP), "is a loop of symbolic links", "Name what they were to lead to.")
    if told not in _NO_PATH:
        return None
    wrong = [word for word in words if "\0" in word or word.partition("=")[2].startswith("~") or word[:1] == "~"]
    return Finding(" ".join(map(repr, [*wrong, *_not_text(words)])) or "a path in the configuration", *_NO_PATH[told])


def _not_text(words: Sequence[str]) -> list[str]:
    """Lists the words that hold bytes which are no text, as names of files in another encoding do."""
    return [word for word in words if any("\ud800" <= mark <= "\udfff" for mark in word)]
