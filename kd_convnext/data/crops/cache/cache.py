"""Caches prepared crops on disk: each crop is super-resolved once, by whoever needs it first, and written atomically.

``root/<hash of the configuration>/<2 hex>/<sha256>.png``. The key is the hash of the configuration (weights,
scale, sizes, ...) and the crop's own pixels, so another weight file, scale or box is another entry, and
processes that share the folder agree without talking to each other.
"""

import os
import platform
import random
import threading
import time
from collections.abc import Iterable
from concurrent.futures import as_completed
from contextlib import suppress
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from kd_convnext._version import __version__
from kd_convnext.common.arrays import Pixels
from kd_convnext.common.console import progress_bar
from kd_convnext.common.files import default_cache_dir
from kd_convnext.common.words import command_line
from kd_convnext.data.crops.cache.enlarged import EnlargedCrops, place, write_configuration
from kd_convnext.data.crops.cache.entries import entry_size, read_entry, write_entry
from kd_convnext.data.crops.cache.index import Index, Stamp
from kd_convnext.data.crops.cache.prepared import PreparedCrops, PrepareSummary, crop_key, entry_path
from kd_convnext.data.crops.cache.reading import PhotographRegions, RegionRow, photographs_of, read_regions
from kd_convnext.data.crops.pool import crop_pool
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.build import automatic_networks
from kd_convnext.data.crops.upscaling.upscaler import NETWORKS
from kd_convnext.data.crops.upscaling.weights import locate
from kd_convnext.data.manifest.manifest import Manifest
from kd_convnext.errors import CacheError, Finding

__all__ = [
    "CropCache",
    "CropSpec",
    "PrepareSummary",
    "PreparedCrops",
    "crop_key",
    "default_cache_dir",
    "entry_path",
]

OnError = Literal["raise", "skip"]


@dataclass(frozen=True)
class Survey:
    """Counts of cached and missing crops, read from the index.

    Attributes:
        found: Row to key.
        bytes: Size on the disk of the entries found.
        missing: Photographs with the regions still to make.
    """

    found: dict[int, str]
    bytes: int
    missing: tuple[PhotographRegions, ...]


@dataclass
class _Progress:
    """Counts the progress of all threads under one lock."""

    keys: dict[int, str]
    failed: dict[int, Finding] = field(default_factory=dict)
    made: int = 0
    bytes: int = 0
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def succeed(self, row: int, key: str, size: int, made: bool) -> None:
        with self.lock:
            self.keys[row] = key
            self.bytes += size
            self.made += made

    def fail(self, region: RegionRow, finding: Finding) -> None:
        with self.lock:
            self.failed[region.row] = finding


class CropCache:
    """A folder of prepared crops for one configuration."""

    def __init__(self, root: Path, spec: CropSpec, device: str = "cpu") -> None:
        """Opens the cache; nothing is written before `fill`.

        Args:
            root: Folder shared by all configurations and processes; see `default_cache_dir`.
            spec: How crops are made.
            device: Where the network runs; not part of the keys.

        Raises:
            UpscalerError: The weights or the package are missing or not usable.
        """
        self.spec = _chosen(root, spec, device)
        self.device = device
        self.upscaler = self.spec.build_upscaler(device)
        self.identity = self.spec.identity()
        self.salt, self.folder = place(root, self.identity)
        self.enlarged = EnlargedCrops(root, self.spec)

    def survey(self, manifest: Manifest, rows: npt.NDArray[Any] | None = None, *, verify: bool = False) -> Survey:
        """Counts cached and missing crops from the index, without decoding a photograph.

        Args:
            manifest: The photographs.
            rows: Positions in the manifest; None for all.
            verify: Trusts nothing: everything counts as missing, to be looked at again.
        """
        photographs = photographs_of(manifest, rows)
        with self.open_index() as index:
            return Survey({}, 0, photographs) if verify else self._survey(index, photographs)

    def require(self, manifest: Manifest, rows: npt.NDArray[Any] | None = None) -> None:
        """Raises an error if crops are missing.

        Args:
            manifest: The photographs.
            rows: Positions in the manifest; None for all.

        Raises:
            CacheError: Naming the photographs whose crops are missing.
        """
        missing = self.survey(manifest, rows).missing
        if missing:
            command = command_line(["prepare"], manifest=manifest.path)
            remedy = (
                f"Choose --data.loader.on_miss make, or first, with this fit's options of crops and cache: {command}"
            )
            raise CacheError(
                Finding(_name_row(manifest, region.row, Finding("", "", "")).where, "its crop is not prepared", remedy)
                for photograph in missing
                for region in photograph.regions
            )

    def fill(
        self,
        manifest: Manifest,
        rows: npt.NDArray[Any] | None = None,
        *,
        on_error: OnError = "raise",
        progress: bool = True,
        verify: bool = False,
    ) -> PreparedCrops:
        """Makes every crop that is missing, decoding each photograph once.

        Each crop is stored as soon as it is made: after an interruption the next call makes only the rest.
        Any number of processes may fill the same folder.

        Args:
            manifest: The photographs.
            rows: Positions in the manifest; None for all.
            on_error: ``raise`` reports all photographs that failed after everything else is made; ``skip``
                leaves them in ``failed`` of the result.
            progress: Whether a progress bar may be shown (on stderr).
            verify: Trusts neither the index nor an entry's looks: photographs are decoded again and entries
                read wholly.

        Returns:
            The crops, ready to load.

        Raises:
            CacheError: Photographs that cannot be read or cropped, all of them; or no space, no permission.
        """
        start = time.perf_counter()
        photographs = photographs_of(manifest, rows)
        regions = {row: (path, box) for path, wanted in photographs for row, box in wanted}
        with self.open_index() as index:
            survey = Survey({}, 0, photographs) if verify else self._survey(index, photographs)
            state = _Progress(keys=dict(survey.found), bytes=survey.bytes)
            self._make_all(survey.missing, index, state, progress, verify)
        failed = {row: _name_row(manifest, row, finding) for row, finding in sorted(state.failed.items())}
        if failed and on_error == "raise":
            raise CacheError(failed.values())
        summary = PrepareSummary(
            made=state.made,
            found=len(state.keys) - state.made,
            failed=len(failed),
            bytes=state.bytes,
            seconds=time.perf_counter() - start,
        )
        return PreparedCrops(self.folder, self.spec, self.salt, regions, state.keys, failed, summary)

    def _survey(self, index: Index, photographs: Iterable[PhotographRegions]) -> Survey:
        found: dict[int, str] = {}
        size, missing = 0, []
        for path, regions in photographs:
            try:
                stamp = Stamp.of(path)
            except OSError:
                missing.append(PhotographRegions(path, regions))
                continue
            left = []
            for row, box in regions:
                key = index.find(stamp, box)
                entry = key and entry_size(entry_path(self.folder, key), self.spec.store_size)
                if key and entry:
                    found[row] = key
                    size += entry
                else:
                    left.append(RegionRow(row, box))
            if left:
                missing.append(PhotographRegions(path, tuple(left)))
        return Survey(found, size, tuple(missing))

    def _make_all(
        self, missing: tuple[PhotographRegions, ...], index: Index, state: _Progress, progress: bool, verify: bool
    ) -> None:
        if not missing:
            return
        self.write_configuration()
        total = sum(len(photograph.regions) for photograph in missing)
        # Each process in an order of its own: those that fill one folder at once rarely meet on the same crop.
        missing = tuple(random.Random().sample(missing, len(missing)))
        with progress_bar(total, progress) as advance, crop_pool(self.upscaler) as pool:
            try:
                futures = [pool.submit(self._make, photograph, index, state, verify) for photograph in missing]
                for future in as_completed(futures):
                    advance(future.result())
            finally:
                state.stop.set()

    def _make(self, photograph: PhotographRegions, index: Index, state: _Progress, verify: bool) -> int:
        """Makes the missing crops of one photograph; returns how many were dealt with."""
        reading = read_regions(photograph, self.spec, self.salt)
        for region, finding in reading.failed:
            state.fail(region, finding)
        for cut in reading.cuts:
            if state.stop.is_set():
                break
            size, made = self._keep(entry_path(self.folder, cut.key), cut.crop, verify)
            index.add(reading.stamp, cut.region.box, cut.key)
            state.succeed(cut.region.row, cut.key, size, made)
        return len(photograph.regions)

    def open_index(self) -> Index:
        """Opens the index, with a record of who writes."""
        return Index(self.folder / "index", _versions() | {"device": self.device})

    def _keep(self, path: Path, crop: Pixels, verify: bool) -> tuple[int, bool]:
        """Returns the entry's size in bytes and whether it had to be made."""
        size = self.entry(path, verify)
        if size is None:
            pixels, kept = self.enlarged.make(crop, self.spec, self.upscaler)
            return write_entry(path, pixels, kept), True
        return size, False

    def entry(self, path: Path, verify: bool = False) -> int | None:
        """Looks for an entry.

        Args:
            path: See `entry_path`.
            verify: Read every byte, instead of the two ends.

        Returns:
            Its size in bytes, or None where it has to be made.
        """
        size = entry_size(path, self.spec.store_size)
        return None if size is None or (verify and read_entry(path, self.spec.store_size) is None) else size

    def write_configuration(self) -> None:
        """Writes the configuration into its folder, readable (``config.json``)."""
        write_configuration(self.folder, self.identity)


def _chosen(root: Path, spec: CropSpec, device: str) -> CropSpec:
    """Replaces ``auto``; a cache that was filled before another network became the first choice stays in use."""
    chosen = spec.resolved(device)
    if spec.upscaler != "auto" or chosen.upscaler not in NETWORKS:
        return chosen
    networks = automatic_networks(locate(chosen.weights()[0]), device, spec.sr_precision)
    able = [replace(chosen, upscaler=name) for name in networks]
    found = [(one, place(root, one.identity())[1] / "config.json") for one in able]
    return next((one for one, record in found if record.is_file()), chosen)


def _name_row(manifest: Manifest, row: int, finding: Finding) -> Finding:
    image = manifest.table["image"].iat[row]
    place = manifest.where(row)
    return replace(finding, where=place if place == image else f"{place} ({image})")


def _versions() -> dict[str, Any]:
    """Versions for the record; looked up without importing the packages."""
    found: dict[str, Any] = {"kd_convnext": __version__, "host": platform.node(), "pid": os.getpid()}
    for name in ("torch", "spandrel", "ncnn", "realesrgan", "opencv-python-headless", "numpy"):
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
