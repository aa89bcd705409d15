"""Finds cache entries that no manifest needs, and removes them when asked."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from kd_convnext.common.files import write_finding
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.index import Index, Stamp
from kd_convnext.data.crops.cache.packed import pack_path
from kd_convnext.data.crops.cache.prepared import entry_path
from kd_convnext.data.crops.cache.reading import photographs_of, read_regions
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.errors import CacheError, Finding

_ABANDONED = 24 * 3600
"""Seconds after which a temporary file belongs to a writer that was killed."""


@dataclass(frozen=True)
class Unused:
    """Files that could be removed.

    Attributes:
        files: Entries, enlarged crops, packed forms and leftovers of killed writers, sorted.
        bytes: Their size on the disk.
    """

    files: tuple[Path, ...]
    bytes: int


def find_unused(cache: CropCache, manifests: Sequence[Manifest]) -> Unused:
    """Finds the files of one configuration, and of the enlarged crops behind it, that no manifest needs.

    Args:
        cache: The configuration.
        manifests: Whose entries stay.

    Returns:
        The files; nothing is removed.

    Raises:
        CacheError: A photograph cannot be read, so that its entries are not known.
    """
    wanted: set[Path] = set()
    with cache.open_index() as index:
        for manifest in manifests:
            keys = _keys(cache, index, manifest)
            wanted |= {entry_path(cache.folder, key) for key in keys.values()}
            wanted.add(pack_path(cache.folder, keys))
    if cache.enlarged.folder is not None:
        wanted |= {path for manifest in manifests for path in _enlarged(cache, manifest)}
    present = [*cache.folder.glob("??/*.png"), *cache.folder.glob("packed/*.npy")]
    present += [] if cache.enlarged.folder is None else cache.enlarged.folder.glob("??/*.png")
    unused = [path for path in present if path not in wanted]
    unused += [path for path in cache.folder.rglob(".*.tmp") if _age(path) > _ABANDONED]
    return Unused(tuple(sorted(unused)), sum(_size(path) for path in unused))


def remove(unused: Unused) -> int:
    """Removes files.

    Args:
        unused: What `find_unused` found.

    Returns:
        How many are gone now.

    Raises:
        CacheError: No permission, for each such file.
    """
    findings = []
    for path in unused.files:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            findings.append(write_finding(path, error))
    if findings:
        raise CacheError(findings)
    return len(unused.files)


def _keys(cache: CropCache, index: Index, manifest: Manifest) -> dict[int, str]:
    """Returns the key of each row, from the index where it knows the photograph, else by decoding it."""
    keys: dict[int, str] = {}
    failed: list[Finding] = []
    for photograph in photographs_of(manifest, None):
        known = {row: _known(index, photograph.path, box) for row, box in photograph.regions}
        if None in known.values():
            reading = read_regions(photograph, cache.spec, cache.salt)
            failed += [Finding(str(photograph.path), what.what, what.remedy) for _, what in reading.failed]
            known = {cut.region.row: cut.key for cut in reading.cuts}
        keys |= {row: key for row, key in known.items() if key}
    if failed:
        raise CacheError(failed)
    return keys


def _enlarged(cache: CropCache, manifest: Manifest) -> Iterator[Path]:
    """Yields where the enlarged crops of a manifest lie; they are named by their pixels, so that all are read."""
    for photograph in photographs_of(manifest, None):
        reading = read_regions(photograph, cache.spec, cache.enlarged.salt)
        if reading.failed:
            raise CacheError(Finding(str(photograph.path), one.what, one.remedy) for _, one in reading.failed)
        yield from (entry_path(cast(Path, cache.enlarged.folder), cut.key) for cut in reading.cuts)


def _known(index: Index, path: Path, box: object) -> str | None:
    try:
        return index.find(Stamp.of(path), box)  # type: ignore[arg-type]
    except OSError:
        return None


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return 0.0  # gone meanwhile: its writer is alive


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
