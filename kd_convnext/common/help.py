"""Reads a command's help pages: that of daily options, and that of all, without loading what the command needs."""

import hashlib
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stdout, suppress
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from kd_convnext.common.files import atomic_write, default_cache_dir

if TYPE_CHECKING:
    from jsonargparse import DefaultHelpFormatter

_HELP = ("-h", "--help")
_ROLE = re.compile(r":[a-z]+:`+~?(?:[\w.]+\.)?(\w+)`+")
_DIRECTIVE = re.compile(r"\.\.\s+([a-z])([a-z]*)::")
_BLOCK = re.compile(r"(\w)::(?=\s|$)")


def wanted_help(words: Sequence[str]) -> Literal["daily", "all"] | None:
    """Tells which page a command's words ask for: ``--help``, ``--help all`` or none.

    Args:
        words: What stands after the command.
    """
    after = [following for word, following in pairwise(words) if word in _HELP]
    if "all" in after or "--help=all" in words:
        return "all"
    return "daily" if any(word in _HELP for word in words) else None


def daily_options(command: str) -> str:
    """Reads the page of a command's daily options.

    Args:
        command: Such as ``fit``.

    Returns:
        Lines of at most 80 letters.
    """
    return files("kd_convnext").joinpath("assets", "help", f"{command}.txt").read_text("utf-8").rstrip("\n")


def all_options(command: str, make: Callable[[], object]) -> str:
    """Reads the page of all options of a command; a first time, and after every change of a package, it is made.

    Args:
        command: Such as ``fit``.
        make: Prints the page by the command's own parser, which takes seconds for a training.

    Returns:
        Lines for this terminal's width. They are kept in the default cache folder where that can be written.
    """
    kept, stamp = default_cache_dir() / "help" / f"{command}.txt", _stamp()
    with suppress(OSError, ValueError):
        written, page = kept.read_text("utf-8").split("\n", 1)
        if written == stamp:
            return page
    with redirect_stdout(io.StringIO()) as printed:
        make()
    page = printed.getvalue().rstrip("\n")
    with suppress(OSError):
        atomic_write(kept, lambda file: file.write(f"{stamp}\n{page}".encode()))
    return page


def plain_formatter() -> "type[DefaultHelpFormatter]":
    """Returns a parser's formatter that leaves out the marks of docstrings, ours and libraries', before it wraps."""
    from jsonargparse import DefaultHelpFormatter

    class PlainFormatter(DefaultHelpFormatter):
        """Writes help without marks."""

        def _split_lines(self, text: str, width: int) -> list[str]:
            return super()._split_lines(_plain(text), width)

        def start_section(self, heading: str | None) -> None:
            """Begins a group of options."""
            super().start_section(textwrap.fill(_plain(heading or ""), self._width))

        def _fill_text(self, text: str, width: int, indent: str) -> str:
            return super()._fill_text(_plain(text), width, indent)

    return PlainFormatter


def _plain(text: str) -> str:
    """Leaves out the marks of a docstring: ``word``, :func:`word`, ``.. warning::``, ``Example::``."""
    text = _DIRECTIVE.sub(lambda found: f"{found[1].upper()}{found[2]}:", _ROLE.sub(r"\1", text))
    return _BLOCK.sub(r"\1:", text).replace("`", "")


def _stamp() -> str:
    """Hashes all that a page depends on: the packages by name and version, this one's own files, the width."""
    package = Path(str(files("kd_convnext")))
    own = (f"{file} {file.stat().st_mtime_ns}" for file in sorted(package.rglob("*.py")))
    told = [sys.version, str(shutil.get_terminal_size().columns), *_packages(), *own]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()


def _packages() -> Iterator[str]:
    for folder in sys.path:
        yield from sorted(str(found) for found in Path(folder).glob("*.dist-info"))
