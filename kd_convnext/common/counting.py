"""Writes numbers for people: with the noun they count, or with a unit of thousands."""

from typing import Literal

Unit = Literal["lesion", "patient", "group"]
"""What is counted as independent: lesions, patients, or groups of several patients, lesions or like photographs."""


def counted(number: int, noun: str) -> str:
    """Writes a number with what it counts: ``1 lesion``, ``2,221 photographs``, ``3 classes``.

    Args:
        number: How many.
        noun: In the singular, with an ordinary plural.
    """
    ending = "" if number == 1 else "es" if noun.endswith(("s", "x")) else "s"
    return f"{number:,} {noun}{ending}"


def percent(share: float) -> str:
    """Writes a share that was asked for in full, without rounding up to more than was promised: ``99.5``, ``90``.

    Args:
        share: 0..1.

    Returns:
        The percentage, without its sign.
    """
    return f"{100 * share:.6g}"


def count_words(count: float) -> str:
    """Writes a large number for people, three digits and a unit: ``28.6 M``, ``4.45 G``, ``7.12 k``, ``812``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}{unit}"
    return f"{count:.0f}"
