"""Keeps enlarged crops at their own size, so that every stored size comes from one pass of the network.

They are the entries of the same configuration with ``store_size`` None, as a filling with that value would make them.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from kd_convnext.common.arrays import Pixels
from kd_convnext.common.files import atomic_write, write_finding
from kd_convnext.data.crops.cache.entries import entry_fidelity, entry_size, read_entry, write_entry
from kd_convnext.data.crops.cache.prepared import crop_key, entry_path
from kd_convnext.data.crops.fidelity import Fidelity, fidelity
from kd_convnext.data.crops.make import enlarge
from kd_convnext.data.crops.resize import reduced_size, resize_to
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.upscaler import NETWORKS, PIXEL_BUDGET, Piece, Upscaler, UpscalerIdentity
from kd_convnext.errors import CacheError


def place(root: Path, identity: dict[str, Any]) -> tuple[str, Path]:
    """Returns the folder of a configuration's entries.

    Args:
        root: Folder of the cache.
        identity: See `CropSpec.identity`.

    Returns:
        The configuration's part of each key, and its folder.
    """
    salt = json.dumps(identity, sort_keys=True)
    return salt, root / hashlib.sha256(salt.encode()).hexdigest()[:16]


def write_configuration(folder: Path, identity: dict[str, Any]) -> None:
    """Writes a configuration into its folder, readable (``config.json``).

    Args:
        folder: See `place`.
        identity: See `CropSpec.identity`.

    Raises:
        CacheError: No space or no permission.
    """
    path = folder / "config.json"
    if path.is_file():
        return
    content = json.dumps(identity, indent=2).encode()
    try:
        atomic_write(path, lambda file: file.write(content))
    except OSError as error:
        raise CacheError(write_finding(path, error)) from error


@dataclass(frozen=True)
class _Known:
    """Returns a stored result in place of a network."""

    identity: UpscalerIdentity
    pixels: Pixels

    def __call__(self, crop: Pixels) -> Pixels:
        return self.pixels

    def pieces(self, crop: Pixels) -> Iterator[Piece]:
        yield Piece(0, 0, self.pixels)


class EnlargedCrops:
    """The enlarged crops behind a configuration, shared by all stored sizes and ways to resize.

    Attributes:
        folder: Where they lie; None where there are none: without a network an enlargement costs less than reading.
        salt: The configuration's part of each key.
    """

    folder: Path | None = None
    salt = ""

    def __init__(self, root: Path, spec: CropSpec) -> None:
        """Opens their folder; nothing is written before `make`.

        Args:
            root: Folder of the cache.
            spec: A definite specification (`CropSpec.resolved`).
        """
        if spec.upscaler in NETWORKS and spec.store_size is not None:
            self._source = replace(spec, store_size=None, resize="stretch")
            self._identity = self._source.identity()
            self.salt, self.folder = place(root, self._identity)

    def holds(self, crop: Pixels) -> bool:
        """Returns whether the enlarged form of a crop, uint8 RGB [h, w, 3], is stored."""
        return self.folder is not None and entry_size(self._path(self.folder, crop), None) is not None

    def make(self, crop: Pixels, spec: CropSpec, upscaler: Upscaler) -> tuple[Pixels, Fidelity | None]:
        """Makes the stored form of a crop, from its enlarged form where that is there.

        Args:
            crop: uint8 RGB [h, w, 3] as cut from the photograph.
            spec: How to reduce and store.
            upscaler: The upscaler that ``spec`` names.

        Returns:
            The very pixels of `enlarge`, and how faithful the enlargement is; None where there is no network or the
            crop is too large to be held as a whole.

        Raises:
            CacheError: No space or no permission.
        """
        height, width = reduced_size(crop.shape[0], crop.shape[1], spec.sr_max_side)
        if self.folder is None or height * width > PIXEL_BUDGET:  # larger ones are never held as a whole
            return enlarge(crop, spec, upscaler), None
        path = self._path(self.folder, crop)
        pixels, kept = read_entry(path, None), entry_fidelity(path)
        if pixels is None or kept is None:
            pixels = enlarge(crop, self._source, upscaler) if pixels is None else pixels
            kept = fidelity(resize_to(crop, height, width), pixels)
            write_configuration(self.folder, self._identity)
            write_entry(path, pixels, kept)
        # What is kept is consistent already, where that is wanted.
        return enlarge(crop, replace(spec, sr_consistent=False), _Known(upscaler.identity, pixels)), kept

    def _path(self, folder: Path, crop: Pixels) -> Path:
        return entry_path(folder, crop_key(self.salt, crop))
