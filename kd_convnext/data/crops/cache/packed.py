"""Packs the crop cache into one memory-mapped file: nothing is decoded, and only the pages read are loaded."""

import hashlib
import mmap
import warnings
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels, stored_array
from kd_convnext.common.console import progress_bar
from kd_convnext.common.files import atomic_write, require_space, write_finding
from kd_convnext.data.crops.cache.prepared import PreparedCrops
from kd_convnext.errors import CacheError, Finding


def pack_path(folder: Path, keys: Mapping[int, str]) -> Path:
    """Returns the path of the packed file of a set of crops.

    Args:
        folder: The cache's folder for a configuration.
        keys: Row to key; the same keys share a file, whatever their rows.
    """
    digest = hashlib.sha256("\n".join(sorted(set(keys.values()))).encode()).hexdigest()
    return folder / "packed" / f"{digest[:32]}.npy"


@dataclass
class PackedCrops:
    """Crops in one array on the disk. Picklable, for loader workers: each maps the file itself.

    A record's checksum is compared when it is first read, by whichever of the processes forked from the one that
    packed; a damaged one is taken from its entry instead.

    Attributes:
        path: The file: one record a crop, ``pixels`` uint8 RGB [S, S, 3] and ``crc32`` of them.
        crops: The entries behind it.
        places: Row of the manifest to record.
    """

    path: Path
    crops: PreparedCrops
    places: dict[int, int]
    _records: npt.NDArray[np.void] | None = field(default=None, repr=False)
    _checked: npt.NDArray[np.bool_] | None = field(default=None, repr=False)

    def load(self, i: int) -> Pixels:
        """Loads one crop; see `PreparedCrops.load`.

        Args:
            i: Row of the manifest (0-based position).

        Returns:
            uint8 RGB [S, S, 3], not writable.

        Raises:
            CacheError: As `PreparedCrops.load`.
        """
        if i not in self.places:
            return self.crops.load(i)  # says why
        if self._records is None or self._checked is None:
            self._records = np.load(self.path, mmap_mode="r", allow_pickle=False)
            self._checked = _flags(len(self._records)) if self._checked is None else self._checked
        place = self.places[i]
        record = self._records[place]
        pixels: Pixels = record["pixels"]
        if not self._checked[place]:
            if zlib.crc32(pixels.data) != int(record["crc32"]):
                warnings.warn(f"{self.path} is damaged; delete it, and it is made again", stacklevel=2)
                return self.crops.load(i)
            self._checked[place] = True
        return pixels

    def key(self, i: int) -> str:
        """Names the crop of a row, as `PreparedCrops.key`."""
        return self.crops.key(i)

    def __getstate__(self) -> dict[str, object]:
        """Leaves the open file behind."""
        return {**self.__dict__, "_records": None, "_checked": None}


def pack(crops: PreparedCrops, *, progress: bool = True) -> PackedCrops:
    """Packs prepared crops into one file, or finds the file.

    It is written under a temporary name and takes its own in one step: it is whole or absent.

    Args:
        crops: What to pack; rows that failed are left out.
        progress: Whether a progress bar may be shown.

    Returns:
        The packed crops.

    Raises:
        CacheError: The crops have no common size (``store_size: null``), or there is no space or no permission.
    """
    side = crops.spec.store_size
    if side is None:
        remedy = "Give --data.crops.store_size a number, or leave --data.loader.packed false."
        raise CacheError(Finding("--data.loader.packed", "crops that are stored whole have no common size", remedy))
    keys = sorted(set(crops.keys.values()))
    path = pack_path(crops.folder, crops.keys)
    kind = _record(side)
    if not _fits(path, kind, len(keys)):
        rows = {key: row for row, key in crops.keys.items()}
        remedy = "Free some space, name another --data.cache_dir, or leave --data.loader.packed false."
        need = require_space(path.parent, kind.itemsize * len(keys), "packed crops", remedy)
        print(f"packing crops into {path}: {need}")
        with progress_bar(len(keys), progress, "packing crops") as advance:
            try:
                atomic_write(path, lambda file: _write(file, kind, [rows[key] for key in keys], crops, advance))
            except OSError as error:
                raise CacheError(write_finding(path, error)) from error
    place = {key: number for number, key in enumerate(keys)}
    return PackedCrops(path, crops, {row: place[key] for row, key in crops.keys.items()}, _checked=_flags(len(keys)))


def discard_damaged(crops: PreparedCrops) -> Path | None:
    """Reads the packed form of crops wholly, where there is one, and removes it if a record is not as written.

    Args:
        crops: Prepared crops.

    Returns:
        The file removed, or None.
    """
    path, side = pack_path(crops.folder, crops.keys), crops.spec.store_size
    if not path.is_file():
        return None
    if side is not None and _fits(path, _record(side), len(set(crops.keys.values()))):
        records = np.load(path, mmap_mode="r", allow_pickle=False)
        if all(zlib.crc32(record["pixels"].data) == int(record["crc32"]) for record in records):
            return None
    path.unlink()
    return path


def _flags(count: int) -> npt.NDArray[np.bool_]:
    """False for each record, in memory that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, max(1, count)), bool, count)


def _record(side: int) -> np.dtype[np.void]:
    return np.dtype([("pixels", np.uint8, (side, side, 3)), ("crc32", "<u4")])


def _write(
    file: BinaryIO, kind: np.dtype[np.void], rows: list[int], crops: PreparedCrops, advance: Callable[[int], None]
) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(kind), "fortran_order": False, "shape": (len(rows),)}
    np.lib.format.write_array_header_2_0(file, header)
    record = np.zeros((), kind)
    for row in rows:
        pixels = crops.load(row)
        record["pixels"], record["crc32"] = pixels, zlib.crc32(pixels.data)
        file.write(record.tobytes())
        advance(1)


def _fits(path: Path, kind: np.dtype[np.void], count: int) -> bool:
    """Returns whether a complete file of this form exists; each record is checked when it is read."""
    found = stored_array(path)
    return found is not None and found.dtype == kind and found.shape == (count,)
