"""Names networks by what they are: a stock name only where nothing of the stock network was changed."""

from collections.abc import Mapping
from typing import Any


def network_name(network: Mapping[str, Any]) -> str:
    """Names a network of a configuration.

    Args:
        network: ``name`` and ``args`` of a ``BackboneSpec`` as plain values.

    Returns:
        timm's name, with what was changed behind it: ``convnext_tiny, altered (depths 1-1-1-1, dims 8-16-16-24)``.
    """
    name, changed = str(network.get("name") or "not recorded"), network.get("args") or {}
    if not changed:
        return name
    return f"{name}, altered ({', '.join(f'{key} {_plain(value)}' for key, value in changed.items())})"


def count_words(count: float) -> str:
    """Writes a large number for people, three digits and a unit: ``28.6 M``, ``4.45 G``, ``7.12 k``, ``812``."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}{unit}"
    return f"{count:.0f}"


def _plain(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
