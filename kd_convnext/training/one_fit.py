"""Keeps a second fit out of a run's folder while one writes there."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from kd_convnext.errors import ConfigError, Finding

LOCK = ".fit.lock"
"""File of a run's folder that is locked while a fit writes there; the lock ends with its process, however that ends."""

_TRIES = 100
"""So many fits do not end in the instant between; a file system that counts its files otherwise is believed."""


@contextmanager
def writing_into(folder: Path, *, alone: bool) -> Iterator[None]:
    """Names the folder of a run in errors of a disk that name no place, such as a logger's, and may lock it.

    Args:
        folder: Of the run.
        alone: Whether no other fit may write there meanwhile.

    Raises:
        ConfigError: Another fit writes there.
    """
    with _locked(folder) if alone else nullcontext():
        try:
            yield
        except OSError as error:
            if error.filename is None:
                error.filename = str(folder)
            raise


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        import fcntl
    except ImportError:  # not on Windows
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / LOCK
    for left in reversed(range(_TRIES)):
        with path.open("w", encoding="utf-8") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                # A file system that has no locks keeps nobody out.
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    remedy = "Wait until it has ended, or name another --trainer.default_root_dir."
                    raise ConfigError(Finding(str(folder), "another fit is writing into it", remedy)) from error
            if left and not _is_at(path, file.fileno()):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _is_at(path: Path, descriptor: int) -> bool:
    """Tells whether a path still names an open file: a fit that has ended since then has removed it."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
