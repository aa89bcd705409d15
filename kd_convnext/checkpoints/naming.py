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


def _plain(value: object) -> str:
    return "-".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
