"""Configurations that come with the package: ``configs/...`` is found from any folder."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path


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
