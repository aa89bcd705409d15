"""Holds back warnings about a manifest where an earlier command has said them."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from kd_convnext.errors import ManifestWarning


@contextmanager
def warned_once(known: Callable[[], bool] = lambda: True) -> Iterator[None]:
    """Shows the warnings of the block at its end, without those about a manifest that is known.

    Args:
        known: Asked at the end of the block, whether the photographs and their division are those that a fit has
            warned of. A block that fails has all its warnings shown.
    """
    held: list[warnings.WarningMessage] = []
    told = False
    try:
        with warnings.catch_warnings(record=True) as held:
            yield
            told = known()
    finally:
        for one in held:
            if not (told and issubclass(one.category, ManifestWarning)):
                warnings.showwarning(one.message, one.category, one.filename, one.lineno)
