"""Inspects many photograph files in parallel without decoding pixels: size, hash, readability."""

import hashlib
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TypeVar

from kd_convnext.common.machine import available_cores
from kd_convnext.data.manifest.images import read_size
from kd_convnext.errors import Finding, ManifestError

_PROGRESS_FROM = 2000  # files; fewer are done before a bar could be read
_HANDFUL = 64  # files a task at most

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class PhotographFile:
    """Facts from the header of a file.

    Attributes:
        width: Columns after EXIF rotation, 0 when unreadable.
        height: Rows after EXIF rotation, 0 when unreadable.
        size: Bytes of the file, 0 when unreadable.
        problem: Why it is unreadable, or None.
    """

    width: int
    height: int
    size: int
    problem: Finding | None = None


def inspect_files(paths: Sequence[Path]) -> list[PhotographFile]:
    """Reads the header of each file.

    Args:
        paths: The photographs.

    Returns:
        One record per path, in order; unreadable files have a `problem`.
    """
    return in_parallel(_inspect, paths, "Checking photographs")


def first_of_same_bytes(paths: Sequence[Path], sizes: Sequence[int]) -> dict[int, int]:
    """Finds different files with the same content.

    Only files that share their size with another are read.

    Args:
        paths: The photographs.
        sizes: Bytes of each file; files of size 0 (unreadable) are left out.

    Returns:
        Position of a file to the position of the first with the same bytes, for files that are not alone.
    """
    by_size: dict[int, list[int]] = defaultdict(list)
    for position, size in enumerate(sizes):
        if size:
            by_size[size].append(position)
    candidates = [position for group in by_size.values() if len(group) > 1 for position in group]
    digests = in_parallel(_digest, [paths[position] for position in candidates], "Looking for copies")
    by_digest: dict[bytes, list[int]] = defaultdict(list)
    for position, digest in zip(candidates, digests, strict=True):
        if digest is not None:
            by_digest[digest].append(position)
    return {position: group[0] for group in by_digest.values() if len(group) > 1 for position in group}


def _inspect(path: Path) -> PhotographFile:
    try:
        width, height = read_size(path)
        return PhotographFile(width, height, path.stat().st_size)
    except ManifestError as error:
        return PhotographFile(0, 0, 0, error.findings[0])


def _digest(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    except OSError:  # gone since its header was read; whoever decodes it will say so
        return None


def in_parallel(function: Callable[[_Item], _Result], items: Sequence[_Item], description: str) -> list[_Result]:
    """Maps over threads (the work is mostly waiting for the disk), with a bar on a terminal.

    Args:
        function: Called once for each item.
        items: In order.
        description: Of the work, for the bar.

    Returns:
        The results, in order.
    """
    threads = min(32, 4 * available_cores())
    # By the handful: a million waiting tasks would take gigabytes.
    count = min(_HANDFUL, -(-len(items) // (4 * threads))) or 1
    handfuls = (items[start : start + count] for start in range(0, len(items), count))
    with ThreadPoolExecutor(threads) as pool:
        results = chain.from_iterable(pool.map(lambda handful: [function(item) for item in handful], handfuls))
        if len(items) > _PROGRESS_FROM and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            return list(
                track(results, description, total=len(items), console=Console(stderr=True, force_jupyter=False))
            )
        return list(results)
