"""Tells whether a score is best when lowest or highest."""

import re
from typing import Literal

_FALLING = {"loss", "ece", "nll", "brier", "error"}
"""Words in the name of a score that is best when lowest."""


def best_is(monitor: str) -> Literal["min", "max"]:
    """Returns whether a score is best when lowest or highest, by its name.

    Args:
        monitor: Such as ``val/loss``, ``val/lesion/ece`` or ``val/f1_macro``.
    """
    return "min" if _FALLING & set(re.split(r"[/_]", monitor)) else "max"
