"""The progress bar of a filling."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

_QUIET_BELOW = 50


@contextmanager
def progress_bar(total: int, wanted: bool, title: str = "preparing crops") -> Iterator[Callable[[int], None]]:
    """Shows a progress bar on stderr with crops per second and the time left.

    Args:
        total: Crops to make.
        wanted: Whether a bar may be shown; short work shows none where the output is not a terminal.
        title: What is being done.

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
        """Crops per second."""

        def render(self, task: Task) -> Text:
            """Returns the speed of the last seconds."""
            speed = task.finished_speed or task.speed
            return Text("- crops/s" if speed is None else f"{speed:.3g} crops/s")

    console = Console(stderr=True)
    shown = wanted and (console.is_terminal or total > _QUIET_BELOW)
    columns = (title, BarColumn(), MofNCompleteColumn(), Speed(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task("crops", total=total)
        yield lambda count: bar.advance(task, count)
