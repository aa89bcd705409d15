"""Finds near-identical photographs: one picture saved again, smaller, or with another brightness."""

import hashlib
import os
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kd_convnext.common.files import atomic_write, default_cache_dir, is_special
from kd_convnext.data.manifest.images import read_thumbnail
from kd_convnext.data.manifest.inspection import in_parallel
from kd_convnext.errors import ManifestError

DISTANCE = 6
"""Bits of the 64-bit difference hash (dHash) in which near-identical photographs differ at most."""
CORRELATION = 0.997
"""Correlation of 16 x 16 grey thumbnails from which photographs of a similar hash are near-identical."""
_SIDE = 16
_FLAT = 2.0  # grey levels: the standard deviation below which a thumbnail shows nothing to compare
_SAME_LEVELS = 1.0  # mean difference in grey levels: pale photographs correlate badly after compression
_MANY = 200_000  # photographs; above, hashes are compared to 3 bits only, in buckets of 16 bits
_PAIRS = 1 << 22  # compared at once
_BITS = np.array([bin(value).count("1") for value in range(256)], np.uint8)

Bytes = NDArray[np.uint8]
Pairs = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Looks:
    """Perceptual hashes of photographs.

    Attributes:
        hashes: uint64 [N], difference hashes (dHash of 9 x 8 grey values).
        thumbnails: uint8 [N, 256], 16 x 16 grey values.
        known: bool [N], False where a photograph could not be read.
    """

    hashes: NDArray[np.uint64]
    thumbnails: Bytes
    known: NDArray[np.bool_]

    def chosen(self, which: NDArray[np.bool_]) -> "Looks":
        """Returns those of some photographs, bool [N]."""
        return Looks(self.hashes[which], self.thumbnails[which], self.known[which])

    @classmethod
    def of(cls, parts: Sequence["Looks"]) -> "Looks":
        """Returns those of several sets of photographs, one after the other."""
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in fields(cls)))


def look_at(paths: Sequence[Path], root: Path) -> Looks:
    """Computes the perceptual hash of each photograph; what is known of unchanged files is kept in the cache folder.

    Args:
        paths: The photographs.
        root: The manifest's folder: names the file in which hashes are kept.

    Returns:
        Hashes and thumbnails, in the order of `paths`.
    """
    stamps = np.array([_stamp(path) for path in paths], np.int64).reshape(-1, 4)
    names = [str(path.absolute()) for path in paths]
    store = default_cache_dir() / "looks" / f"{hashlib.sha256(os.fsencode(root.absolute())).hexdigest()[:16]}.npz"
    kept = _read(store)
    rows = np.zeros((len(paths), 8 + _SIDE * _SIDE), np.uint8)
    known = np.zeros(len(paths), np.bool_)
    for position, name in enumerate(names):
        entry = kept.get(name)
        if entry is not None and entry[0] == tuple(stamps[position].tolist()):
            rows[position], known[position] = entry[1], True
    missing = np.flatnonzero(~known).tolist()
    for position, found in zip(
        missing, in_parallel(_look, [paths[k] for k in missing], "Looking for near-identical photographs"), strict=True
    ):
        if found is not None:
            rows[position], known[position] = found, True
    if known[missing].any():
        _write(store, [name for name, there in zip(names, known, strict=True) if there], stamps[known], rows[known])
    return Looks(np.ascontiguousarray(rows[:, :8]).view(np.uint64)[:, 0], rows[:, 8:], known)


def find_alike(looks: Looks) -> Pairs:
    """Finds pairs of near-identical photographs.

    Two photographs are taken for one picture where their difference hashes differ in 6 of 64 bits at most and their
    thumbnails correlate (.997) or differ by one grey level in the mean. Photographs without contrast are left out.

    Args:
        looks: Of the photographs.

    Returns:
        int64 [P, 2], positions, the smaller first.
    """
    grey = looks.thumbnails.astype(np.float32)
    spread = grey.std(axis=1)
    usable = np.flatnonzero(looks.known & (spread >= _FLAT))
    found = []
    for pairs in _close(looks.hashes[usable]):
        one, two = usable[pairs[:, 0]], usable[pairs[:, 1]]
        a = (grey[one] - grey[one].mean(axis=1, keepdims=True)) / spread[one, None]
        b = (grey[two] - grey[two].mean(axis=1, keepdims=True)) / spread[two, None]
        same = (a * b).mean(axis=1) >= CORRELATION
        same |= np.abs(grey[one] - grey[two]).mean(axis=1) <= _SAME_LEVELS
        found.append(np.stack([one[same], two[same]], axis=1))
    return np.unique(np.concatenate([np.zeros((0, 2), np.int64), *found]), axis=0)


def first_alike(looks: Looks) -> dict[int, int]:
    """Finds sets of near-identical photographs: `find_alike`, where chains count.

    Args:
        looks: Of the photographs.

    Returns:
        Position of a photograph to the first of its set, for photographs that are not alone.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    pairs, number = find_alike(looks), len(looks.known)
    # scipy 1.11 finds no components where places are 64 bits wide.
    places = (pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int32))
    edges = coo_array((np.ones(len(pairs), np.int8), places), shape=(number, number))
    _, component = connected_components(edges, directed=False)
    _, first, count = np.unique(component, return_index=True, return_counts=True)
    sets = enumerate(component.tolist())
    return {position: int(first[belongs]) for position, belongs in sets if count[belongs] > 1}


def _close(hashes: NDArray[np.uint64]) -> Iterator[Pairs]:
    """Finds pairs of similar hashes: of D + 1 bands of bits, two hashes that differ in D bits share one wholly."""
    distance = DISTANCE if len(hashes) <= _MANY else 3
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(np.r_[True, np.diff(band[order].astype(np.int64)) != 0, True])
        for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            members = order[start:end]
            step = max(1, _PAIRS // max(1, len(members)))
            for first in range(0, len(members) - 1, step):
                block = members[first : first + step]
                differing = (hashes[block][:, None] ^ hashes[members[first:]][None]).view(np.uint8)
                bits = _BITS[differing.reshape(len(block), -1, 8)].sum(axis=2)
                i, j = np.nonzero(bits <= distance)
                later = j > i
                pairs = np.stack([block[i[later]], members[first:][j[later]]], axis=1)
                if len(pairs):
                    yield np.sort(pairs, axis=1).astype(np.int64)


def _look(path: Path) -> Bytes | None:
    try:
        small, hashed = read_thumbnail(path, (_SIDE, _SIDE), (9, 8))
    except ManifestError:  # its header was sound; whoever decodes the whole will say what is wrong
        return None
    wide = hashed.astype(np.int16)
    return np.concatenate([np.packbits(wide[:, 1:] > wide[:, :-1]), small.reshape(-1)])


def _stamp(path: Path) -> tuple[int, int, int, int]:
    try:
        status = path.stat()
    except (OSError, ValueError):
        return (-1, -1, -1, -1)
    return (status.st_size, status.st_mtime_ns, status.st_ino % 2**62, status.st_ctime_ns)


def _read(store: Path) -> dict[str, tuple[tuple[int, ...], Bytes]]:
    """Reads hashes of an earlier run; a file that is damaged or of another form counts as none."""
    if is_special(store):
        return {}
    try:
        with np.load(store, allow_pickle=False) as file:
            names, stamps, rows = file["names"], file["stamps"], file["rows"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    if stamps.shape != (len(names), 4) or rows.shape != (len(names), 8 + _SIDE * _SIDE) or rows.dtype != np.uint8:
        return {}
    entries = zip(names.tolist(), stamps.tolist(), rows, strict=True)
    return {str(name): (tuple(stamp), row) for name, stamp, row in entries}


def _write(store: Path, names: list[str], stamps: NDArray[np.int64], rows: Bytes) -> None:
    try:
        atomic_write(store, lambda file: np.savez(file, names=np.array(names), stamps=stamps, rows=rows))
    except OSError:  # a cache only: next time the photographs are looked at again
        return
