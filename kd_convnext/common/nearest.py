"""Finds the name that was meant by a misspelt one."""

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Finds the known name that is most like another, whatever their capitals.

    Args:
        name: As it was written.
        known: Names that there are.
        cutoff: Likeness from which a name counts, 0 to 1, as in ``difflib.get_close_matches``.

    Returns:
        The name, or None where none is near.
    """
    spelt: dict[str, str] = {}
    for one in known:
        spelt.setdefault(one.casefold(), one)
    close = difflib.get_close_matches(name.casefold(), list(spelt), n=1, cutoff=cutoff)
    return spelt[close[0]] if close else None


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Asks whether the nearest known name was meant: ``Did you mean split? ``, or nothing; see :func:`nearest`."""
    close = nearest(name, known, cutoff)
    return f"Did you mean {close}? " if close is not None else ""
