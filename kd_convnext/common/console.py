"""Prints lines and progress bars, and formats sizes, times and paths for them."""

import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


_QUIET_BELOW = 50


@contextmanager
def progress_bar(
    total: int, wanted: bool, title: str = "preparing crops", unit: str = "crops"
) -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on stderr with crops per second and the time left.

    Args:
        total: Crops to make.
        wanted: Whether a bar may be shown; short work shows none where the output is not a terminal.
        title: What is being done.
        unit: What is counted.

    Yields:
        Advances the bar by a number of crops.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        Task,
        TimeRemainingColumn,
    )
    from rich.text import Text

    class Speed(ProgressColumn):
        """Crops, or other units, per second."""

        def render(self, task: Task) -> Text:
            """Returns the speed of the last seconds."""
            speed = task.finished_speed or task.speed
            return Text(f"- {unit}/s" if speed is None else f"{speed:.3g} {unit}/s")

    # In a notebook too a line of text: rich's own form there needs ipywidgets, and warns without.
    console = Console(stderr=True, force_jupyter=False)
    shown = wanted and (console.is_terminal or total > _QUIET_BELOW)
    columns = (title, BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task("crops", total=total)
        yield lambda count: bar.advance(task, count)


def duration(seconds: float) -> str:
    """Writes a time for people.

    Args:
        seconds: Not negative.

    Returns:
        Two units at most: ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 3 h``.
    """
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"


_QUOTED = r"""'[^']*'(?:"'"'[^']*')*"""
"""A word with blanks as `shlex.quote` writes it, an apostrophe within as ``'"'"'``."""

_WHOLE = re.compile(
    rf"""kd-convnext \w+(?: {_QUOTED}| [^\s-]*/\S*| --\w\S*(?: (?:{_QUOTED}|[^\s-]\S*))?)*"""
    r"""|\"[^"]*"|(?<!\w)'[^']*'(?!\w)"""
)
"""What is copied out of a message, so that no line may break in it: a quoted value, a command with its options."""


def fitted(text: str, stream: TextIO) -> str:
    """Wraps lines to the width of the terminal they go to; in a file or a pipe lines stay whole, to be searched.

    Args:
        text: One line or several.
        stream: Where it will be written.

    Returns:
        The lines, what is wrapped indented below its beginning; paths without blanks, quoted values, commands and rows
        of tables stay whole.
    """
    return "\n".join(map(_wrapped, text.split("\n"))) if stream.isatty() else text


def _wrapped(line: str) -> str:
    width = shutil.get_terminal_size().columns
    if len(line) <= width or "  " in line.strip():  # a row of a table
        return line
    text = line.lstrip(" ")
    first = line[: len(line) - len(text)]
    rest = first + ("  " if text.startswith("- ") or not first else "")
    whole = _WHOLE.sub(lambda found: found[0].replace(" ", "\0"), text)
    # Words that are longer than a line, such as paths, stay whole.
    breaks = textwrap.TextWrapper(width, first, rest, break_long_words=False, break_on_hyphens=False)
    return breaks.fill(whole).replace("\0", " ")


def tell(text: str) -> None:
    """Prints a tool's result or remark, fitted to the terminal."""
    print(fitted(text, sys.stdout))


def complain(text: str) -> None:
    """Prints a warning or an error on stderr, fitted to the terminal."""
    print(fitted(text, sys.stderr), file=sys.stderr, flush=True)


def megabytes(size: int) -> str:
    """Formats bytes as a size."""
    return f"{size / 1e6:.1f} MB"


def shown(path: Path) -> str:
    """Shortens a path for messages: relative if it lies below the current folder."""
    path = path.absolute()
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def say(trainer: "Trainer", line: str) -> None:
    """Prints a line from the first process, fitted to the terminal, without tearing a progress bar.

    Args:
        trainer: Whose process asks.
        line: The text.
    """
    from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

    if trainer.is_global_zero:
        Tqdm.write(fitted(line, sys.stdout), file=sys.stdout)
        sys.stdout.flush()
