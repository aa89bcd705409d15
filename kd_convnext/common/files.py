"""Writes files atomically, hashes them, and names the crop cache's folder."""

import errno
import hashlib
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kd_convnext.errors import CacheError, ConfigError, Finding

LARGEST = 2**28
"""Bytes of a file that is read whole, where its reader names no other bound: no table of ours comes near."""

_REMEDIES = {
    errno.EMFILE: "Let a process open more files (ulimit -n 4096), and give the command again",
    errno.ENFILE: "The machine has too many files open: end other programs, and give the command again",
    errno.ENOSPC: "Free some space or name a folder on another disk; what was finished before is kept",
    errno.EDQUOT: "Free some of your quota or name a folder elsewhere; what was finished before is kept",
    errno.EACCES: "Give yourself write permission there or name another folder",
    errno.EPERM: "Give yourself write permission there or name another folder",
    errno.ENOENT: "It was removed meanwhile, or nothing can be made there: name another place",
    errno.ENODEV: "Name a file of your own",
    errno.EROFS: "That disk is read-only: name a folder on another one",
    errno.ENOTDIR: "A file stands where a folder is needed: move it away or name another folder",
    errno.EEXIST: "A file stands where a folder is needed: move it away or name another folder",
}


def atomic_write(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Writes a file so that no reader, and no crash, ever shows a part of it.

    The content goes to a temporary file in the same folder, is flushed to the disk (fsync), and takes the
    final name in one step (rename). Several processes may write the same path: the last one wins and each
    result is whole. Missing parent folders are made.

    Args:
        path: Final name; an existing file is replaced.
        write: Called once with the open binary file.

    Raises:
        OSError: No space, no permission, or a file in place of a folder; the temporary file is gone then and
            an older file of that name is untouched. ``write_finding`` says it in the user's words.
    """
    atomic_write_all({path: write})


def atomic_write_all(writes: Mapping[Path, Callable[[BinaryIO], object]]) -> None:
    """Writes files that belong together, each as `atomic_write` does; they take their names once all are on the disk.

    Args:
        writes: What writes each file, by its final name, in the order in which they take it.

    Raises:
        OSError: As of `atomic_write`; then no older file was replaced for want of space.
    """
    made: dict[Path, Path] = {}
    try:
        for path, write in writes.items():
            if is_special(path):
                raise _special(path)
            path.parent.mkdir(parents=True, exist_ok=True)
            # Not tempfile.mkstemp: its mode 0600 would survive the rename and lock colleagues out of a shared folder.
            made[path] = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
            with _named(path, made[path]), made[path].open("xb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
        for path, temporary in made.items():
            with _named(path, temporary):
                temporary.replace(path)
    except BaseException:
        for temporary in made.values():
            temporary.unlink(missing_ok=True)
        raise


def move_in(files: Sequence[Path], folder: Path, key: str, stale: Iterable[str] = ()) -> list[Path]:
    """Moves files that belong together into a folder, which lacks the most needed of them meanwhile.

    A process that is killed between two of them so leaves no mixture that could be taken for whole.

    Args:
        files: Whole files on the same disk.
        folder: Where to; made where it is missing.
        key: Name of the file without which nobody reads the others: it goes first and comes last.
        stale: Names of earlier files that the new ones do without.

    Returns:
        The files in their places, in the order given.

    Raises:
        OSError: A file cannot be moved.
    """
    folder.mkdir(exist_ok=True)
    for name in (key, *stale):
        (folder / name).unlink(missing_ok=True)
    for file in sorted(files, key=lambda file: file.name == key):
        file.replace(folder / file.name)
    return [folder / file.name for file in files]


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """Yields a temporary folder beside a folder, for files that are moved in together once all are whole.

    Args:
        folder: Where they will lie.

    Raises:
        ConfigError: The block or the folder met a full disk, or another error of writing.
    """
    prefix = f".{folder.name}-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as name:
            yield Path(name)
    except OSError as error:
        # A library's own error of a full disk does not say where; ours may be about a file that lies elsewhere.
        named = Path(str(error.filename or folder))
        own = folder.is_relative_to(named) or any(part.startswith(prefix) for part in named.parts)
        raise ConfigError(write_finding(folder if own else named, error)) from error


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Names the file in an error that names none, such as that of a full disk, or only the temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename in (None, str(temporary)):
            error.filename = str(path)
        raise


def is_utf8(path: Path) -> bool:
    """Tells whether a path can be written into texts: names of files are bytes, and older ones in other encodings."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def is_special(path: Path | str) -> bool:
    """Tells whether a path is a pipe, a device or a socket: it may never end, and what replaces it destroys it.

    Args:
        path: Any path, or any text.

    Returns:
        False where nothing is there.
    """
    try:
        mode = Path(path).stat().st_mode
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_bytes(path: Path | str, at_most: int = LARGEST) -> bytes:
    """Reads a whole file, never a pipe or a device, which may never end, and never more than fits.

    Args:
        path: The file.
        at_most: Its largest size in bytes.

    Returns:
        Its bytes.

    Raises:
        OSError: It is not there, no file, too large, or cannot be read; ``strerror`` says which.
    """
    if is_special(path):
        raise _special(path)
    with Path(path).open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > at_most:
            raise OSError(errno.EFBIG, f"it has {_megabytes(size)}, at most {_megabytes(at_most)} are read", str(path))
        return file.read()


def _special(path: Path | str) -> OSError:
    return OSError(errno.ENODEV, "it is a pipe or a device", str(path))


def require_handles(path: Path | str, error: OSError) -> None:
    """Tells a file that is damaged or missing from one that was not even looked at, as too many files are open.

    Args:
        path: The file or folder that could not be opened.
        error: What the operating system answered.

    Raises:
        CacheError: The process or the machine can open no more files.
    """
    if error.errno in (errno.EMFILE, errno.ENFILE):
        what = f"cannot be opened ({error.strerror})"
        raise CacheError(Finding(str(path), what, f"{_REMEDIES[error.errno]}.")) from error


def write_finding(path: Path, error: OSError) -> Finding:
    """Describes a failed write as a finding.

    Args:
        path: The file or folder that was to be written.
        error: What the operating system answered.

    Returns:
        The finding, with a remedy that fits the reason (space, permission, read-only, a file in the way).
    """
    if error.errno == errno.EEXIST and path.is_symlink() and not path.exists():
        return Finding(str(path), "is a link that leads nowhere", "Remove it, or name another place.")
    reason = error.strerror or str(error)
    remedy = _REMEDIES.get(error.errno or 0, "Check the disk and the folder, or name another folder")
    return Finding(str(path), f"cannot be written ({reason})", f"{remedy}.")


def mistaken_for_weights(path: Path) -> str | None:
    """Recognises what people often have in place of a file of weights.

    Args:
        path: An existing file.

    Returns:
        What it is and how to get the real one, as the end of a sentence; None for anything else.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(512).lstrip().lower()
    except OSError:
        return None
    if begin.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file itself; fetch it by git lfs pull"
    if begin.startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file itself; download it by its raw address"
    return "is empty" if not begin else None


def require_space(folder: Path, size: int, what: str, remedy: str) -> str:
    """Checks the free disk space before a large write.

    Args:
        folder: Where it will lie; made where it is missing.
        size: In bytes.
        what: What it is, in the plural.
        remedy: What to do where it does not fit.

    Returns:
        Need and free space in a few words, to be said before the work.

    Raises:
        CacheError: It does not fit, or the folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise CacheError(write_finding(folder, error)) from error
    if size > free:
        raise CacheError(Finding(str(folder), f"{what} need {_megabytes(size)}, {_megabytes(free)} are free", remedy))
    return f"{_megabytes(size)} of {_megabytes(free)} free"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:{'.0f' if size >= 1e8 else '.3g'}} MB"


def sha256_of(path: Path | str) -> str:
    """Hashes a file's bytes.

    Args:
        path: The file.

    Returns:
        64 lower-case hexadecimal digits.

    Raises:
        OSError: The file cannot be read, or is a pipe or a device.
    """
    if is_special(path):
        raise _special(path)
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def default_cache_dir() -> Path:
    """Returns ``$KD_CONVNEXT_CACHE``, else ``~/.cache/kd-convnext``."""
    named = os.environ.get("KD_CONVNEXT_CACHE")
    return Path(named).expanduser() if named else Path.home() / ".cache" / "kd-convnext"


def write_text(path: Path, text: str) -> None:
    """Writes a text file (UTF-8; bytes of a file's name that are none are escaped).

    Args:
        path: The file, replaced at once.
        text: Its content.

    Raises:
        ConfigError: The file cannot be written.
    """
    write_texts({path: text})


def write_texts(texts: Mapping[Path, str]) -> None:
    """Writes text files that belong together as `write_text` does; where one cannot be written, all stay as they were.

    Args:
        texts: Contents by path.

    Raises:
        ConfigError: A file cannot be written.
    """
    write_all({path: text_writer(text) for path, text in texts.items()})


def text_writer(text: str) -> Callable[[BinaryIO], object]:
    """Returns what writes a text into a file (UTF-8; bytes of a file's name that are none are escaped)."""
    return lambda file: file.write(text.encode("utf-8", "backslashreplace"))


def write_all(writes: Mapping[Path, Callable[[BinaryIO], object]]) -> None:
    """Writes files that belong together; where one cannot be written, all stay as they were.

    Args:
        writes: As of `atomic_write_all`.

    Raises:
        ConfigError: A file cannot be written.
    """
    try:
        atomic_write_all(writes)
    except OSError as error:
        path = next((path for path in writes if str(path) == error.filename), next(iter(writes)))
        raise ConfigError(write_finding(path, error)) from error
