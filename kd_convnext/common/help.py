"""Prints a command's help page of daily options, without loading what the command itself needs."""

from collections.abc import Sequence
from importlib.resources import files
from itertools import pairwise

_HELP = ("-h", "--help")


def wants_help(words: Sequence[str]) -> bool:
    """Tells whether a command's words ask for its page of daily options.

    Args:
        words: What stands after the command.
    """
    return any(word in _HELP for word in words) and not _all_options(words)


def with_all_options(words: Sequence[str]) -> list[str]:
    """Replaces ``--help all`` by the ``--help`` of the command's parser, which lists every option.

    Args:
        words: What stands after the command.

    Returns:
        ``["--help"]``, or the words as they are.
    """
    return ["--help"] if _all_options(words) else list(words)


def daily_options(command: str) -> str:
    """Reads the page of a command's daily options.

    Args:
        command: Such as ``fit``.

    Returns:
        Lines of at most 80 letters.
    """
    return files("kd_convnext").joinpath("assets", "help", f"{command}.txt").read_text("utf-8").rstrip("\n")


def _all_options(words: Sequence[str]) -> bool:
    after = [following for word, following in pairwise(words) if word in _HELP]
    return "all" in after or "--help=all" in words
