"""Tells whether a score is best when lowest or highest, and which epoch a fit keeps by it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

_FALLING = {"loss", "ece", "nll", "brier", "error"}
"""Words in the name of a score that is best when lowest."""


def best_is(monitor: str) -> Literal["min", "max"]:
    """Returns whether a score is best when lowest or highest, by its name.

    Args:
        monitor: Such as ``val/loss``, ``val/lesion/ece`` or ``val/f1_macro``.
    """
    return "min" if _FALLING & set(re.split(r"[/_]", monitor)) else "max"


@dataclass(frozen=True)
class Choice:
    """Names the score that chooses the epoch of ``best.ckpt``.

    Attributes:
        monitor: Such as ``val/f1_macro``.
        mode: Whether it is best when lowest or highest.
    """

    monitor: str = "val/f1_macro"
    mode: Literal["min", "max"] = "max"

    @classmethod
    def of(cls, config: Mapping[str, Any] | None) -> "Choice":
        """Reads the choice of a run's configuration; macro F1 on validation where it says nothing."""
        given = (config or {}).get("checkpoint")
        given = given if isinstance(given, Mapping) else {}
        monitor, mode = str(given.get("monitor") or cls.monitor), given.get("mode")
        return cls(monitor, mode if mode in ("min", "max") else best_is(monitor))
