"""Loads prepared crops in loader workers, and summarises what filling the cache made."""

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.crops.cache.entries import entry_fidelity, read_entry, write_entry
from kd_convnext.data.crops.fidelity import Fidelity
from kd_convnext.data.crops.make import enlarge
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.manifest.boxes import Box, crop_roi
from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import CacheError, Finding

OnMiss = Literal["make", "raise"]


class Crops(Protocol):
    """Where a dataset gets its crops from: single entries, or one packed file."""

    def load(self, i: int) -> Pixels:
        """Loads the crop of a row of the manifest: uint8 RGB [S, S, 3]."""

    def key(self, i: int) -> str:
        """Names the crop of a row: a hash of its pixels and of how it is stored."""


@dataclass(frozen=True)
class PrepareSummary:
    """Counts, bytes and seconds of filling the cache.

    Attributes:
        made: Crops made now.
        found: Crops that were there already.
        failed: Crops that could not be made.
        bytes: Size on the disk of all crops asked for.
        seconds: Time it took.
    """

    made: int
    found: int
    failed: int
    bytes: int
    seconds: float


@dataclass(frozen=True)
class PreparedCrops:
    """Crops ready to be loaded by the row of their manifest. Small and picklable, for loader workers.

    Attributes:
        folder: The cache's folder for this configuration.
        spec: How the crops were made.
        salt: The configuration's part of each key.
        regions: Row to photograph and box.
        keys: Row to entry; rows that failed have none.
        failed: Rows that could not be made, with the reason.
        summary: What the filling did.
        on_miss: What `load` does about an entry that is gone or damaged: ``make`` it again, or ``raise``.
    """

    folder: Path
    spec: CropSpec
    salt: str
    regions: dict[int, tuple[Path, Box | None]]
    keys: dict[int, str]
    failed: dict[int, Finding]
    summary: PrepareSummary
    on_miss: OnMiss = "make"

    @property
    def rows(self) -> npt.NDArray[np.int64]:
        """Rows of the manifest that can be loaded, ascending, int64 [N]."""
        return np.array(sorted(self.keys), np.int64)

    def made(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Leaves out the rows that could not be made, int64 [N]."""
        return rows[~np.isin(rows, list(self.failed))]

    def load(self, i: int) -> Pixels:
        """Loads one crop. An entry that is gone or damaged since is made again from the photograph, or refused.

        Args:
            i: Row of the manifest (0-based position).

        Returns:
            uint8 RGB [S, S, 3], or [h * scale, w * scale, 3] where ``store_size`` is None.

        Raises:
            CacheError: The crop failed before, its photograph is not the one that was prepared, or its entry is
                gone or damaged and ``on_miss`` is ``raise``.
            ManifestError: The photograph cannot be read any more.
            KeyError: That row was not asked for.
        """
        if i in self.failed:
            raise CacheError(self.failed[i])
        path = entry_path(self.folder, self.keys[i])
        pixels = read_entry(path, self.spec.store_size)
        if pixels is not None:
            return pixels
        if self.on_miss == "raise":
            remedy = "Run kd-convnext prepare with --verify true, or choose --data.loader.on_miss make."
            raise CacheError(Finding(str(path), f"the stored crop of {self.regions[i][0]} is gone or damaged", remedy))
        return self._make_again(i, path)

    def key(self, i: int) -> str:
        """Names the crop of a row: a hash of its pixels and of how it is stored."""
        return self.keys[i]

    def fidelities(self) -> dict[int, Fidelity]:
        """Reads how faithful the enlargements are, by row; rows made without a network or measure are left out."""
        found = {row: entry_fidelity(entry_path(self.folder, key)) for row, key in self.keys.items()}
        return {row: kept for row, kept in found.items() if kept is not None}

    def _make_again(self, i: int, path: Path) -> Pixels:
        photograph, box = self.regions[i]
        crop = crop_roi(read_image(photograph), box, self.spec.roi_margin)
        if crop_key(self.salt, crop) != self.keys[i]:
            what = "has changed since its crops were prepared"
            raise CacheError(Finding(str(photograph), what, "Start again, so that it is checked again."))
        # On the CPU: a forked loader worker cannot use its parent's GPU.
        pixels = enlarge(crop, self.spec, self.spec.build_upscaler())
        try:
            write_entry(path, pixels)
        except CacheError as error:
            warnings.warn(f"a crop made again could not be kept: {error}", stacklevel=3)
        return pixels


def crop_key(salt: str, crop: Pixels) -> str:
    """Names a crop under a configuration.

    Args:
        salt: The configuration.
        crop: uint8 RGB [h, w, 3] as cut from the photograph.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256(f"{salt}\nRGB uint8 {crop.shape}\n".encode())
    digest.update(crop.tobytes())
    return digest.hexdigest()


def entry_path(folder: Path, key: str) -> Path:
    """Returns the path of an entry in a configuration's folder."""
    return folder / key[:2] / f"{key}.png"
