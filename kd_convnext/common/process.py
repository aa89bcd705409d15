"""Restores what a command changes for the whole process: warnings, log levels, environment variables."""

import io
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

OWN_VARIABLES = (
    "KD_CONVNEXT_RUN_FOLDER",
    "KD_CONVNEXT_PRECISION",
    "NO_ALBUMENTATIONS_UPDATE",
    "RAY_USAGE_STATS_ENABLED",
)
"""Environment variables that commands set for the processes they start."""

QUIETED = (
    "lightning.pytorch",
    "lightning.fabric",
    "lightning.pytorch.utilities.rank_zero",
)
"""Loggers whose level commands raise."""


_IDLE = (
    "args parameter is intended to run from within Python",
    "does not have many workers",
    "The number of training batches",
    "[Cc]heckpoint.*directory.*exists",
    "Experiment logs directory.*exists",
    "LeafSpec",
)
"""Warnings of libraries about what commands do on purpose."""


def is_stopped(process: int) -> bool:
    """Tells whether a process has been stopped (SIGSTOP), by what the system says.

    Args:
        process: Its number.

    Returns:
        False also where it is gone, or where the system does not say (it has no ``/proc``).
    """
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def quiet_libraries() -> None:
    """Silences advertisements, tips and warnings of libraries that a user can do nothing about.

    Commands do so for themselves; a script of one's own calls it before it makes a trainer. Loggers and filters stay so
    until the process or a command ends.
    """
    for name in QUIETED:
        logging.getLogger(name).setLevel(logging.WARNING)
    for category in (DeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    for message in _IDLE:
        warnings.filterwarnings("ignore", message=f".*{message}")


class Stopped(KeyboardInterrupt):
    """SIGTERM has come: what is open is closed and what is half written removed, as for an interrupt by hand."""

    exit_code = 143


@contextmanager
def stopping_cleanly() -> Iterator[None]:
    """Raises `Stopped` in the block where SIGTERM comes; without it Python ends at once and leaves temporary files.

    Processes that the block forks end at once as before. In another thread, or under another handler, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    owner = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            raise Stopped
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def process_state_kept() -> Iterator[None]:
    """Restores warnings, log levels, signal handlers and own environment variables after the block.

    So that two commands in one process, or a command in a notebook, do not change each other. Not for several threads.
    A fit that fails and fails once more while it ends leaves Lightning's handlers of signals behind.
    """
    variables = {name: os.environ.get(name) for name in OWN_VARIABLES}
    levels = {name: logging.getLogger(name).level for name in QUIETED}
    formatter = warnings.formatwarning
    with warnings.catch_warnings(), _signal_handlers_kept(), _any_text_shown():
        try:
            yield
        finally:
            warnings.formatwarning = formatter
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
            for name, value in variables.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value


@contextmanager
def _any_text_shown() -> Iterator[None]:
    """Escapes what the encoding of a terminal or log lacks: a name or a sign must not end a command."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            if not stream.closed:
                stream.reconfigure(errors=errors)


@contextmanager
def _signal_handlers_kept() -> Iterator[None]:
    """Restores the handlers of signals that fits take; only the main thread may set them."""
    taken = (signal.SIGINT, signal.SIGTERM)
    handlers = {number: signal.getsignal(number) for number in taken}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in handlers.items():
                if signal.getsignal(number) is not handler:
                    signal.signal(number, handler)
