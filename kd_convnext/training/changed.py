"""Tells what has changed between a fit and its continuation: the list of photographs, or what they show."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from kd_convnext.common.counting import counted
from kd_convnext.common.files import read_bytes
from kd_convnext.common.reading import json_of
from kd_convnext.runs.folder import RunFolder

CROPS = "crops_sha256"
"""Entry of a run's ``environment.json``: hash of the crops that the fit learns from and is judged by."""

UNLABELLED_CROPS = "unlabelled_crops_sha256"
"""Another: hash of the crops without labels; null where there are none."""


def changes(folder: RunFolder, contents: Mapping[Path, bytes]) -> list[str]:
    """Compares the record of a fit with that of its continuation.

    Args:
        folder: The run, with the record of before.
        contents: The new record, by path.

    Returns:
        A sentence for each difference; empty for a fit that is new, or recorded by an earlier version.
    """
    found = []
    rows, before = (Counter(content.splitlines()) for content in (contents[folder.split], _content(folder.split)))
    if before and before != rows:
        number = counted(max((rows - before).total(), (before - rows).total()), "row")
        found.append(f"{number} of the photographs' list changed since the fit began (labels, ids, boxes or parts)")
    now, then = (_entries(content) for content in (contents[folder.environment], _content(folder.environment)))
    earlier, crops = then.get(CROPS), now.get(CROPS)
    if earlier and crops and earlier != crops and not found:
        found.append("photographs were replaced since the fit began: their crops are others")
    if UNLABELLED_CROPS in then and then[UNLABELLED_CROPS] != now.get(UNLABELLED_CROPS):
        found.append("photographs without labels were added, removed or replaced since the fit began")
    return found


def _content(path: Path) -> bytes:
    try:
        return read_bytes(path)
    except OSError:
        return b""


def _entries(content: bytes) -> dict[str, object]:
    try:
        found = json_of(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
