"""Makes the missing crops of a stage, over all processes of a trainer, and says where they are loaded from."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Literal

import lightning.pytorch as pl
import numpy as np
import numpy.typing as npt

from kd_convnext.common.console import say
from kd_convnext.common.counting import counted
from kd_convnext.common.files import default_cache_dir
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.packed import pack
from kd_convnext.data.crops.cache.prepared import Crops, OnMiss, PreparedCrops
from kd_convnext.data.crops.preparing.announce import announcement
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.manifest.manifest import Manifest


def open_cache(folder: str | None, spec: CropSpec, trainer: pl.Trainer | None) -> CropCache:
    """Opens the cache of crops, with the upscaler on the trainer's kind of device.

    Args:
        folder: Where crops are kept; None for ``$KD_CONVNEXT_CACHE``, else ``~/.cache/kd-convnext``.
        spec: How crops are made.
        trainer: Of the fit; None for the CPU.

    Raises:
        UpscalerError: The upscaler's weights or package are missing.
    """
    root = default_cache_dir() if folder is None else Path(folder).expanduser()
    device = "cuda" if trainer and trainer.strategy.root_device.type == "cuda" else "cpu"
    with warnings.catch_warnings():
        if trainer and trainer.state.fn != "fit":
            warnings.filterwarnings("ignore", "no Real-ESRGAN weights")  # the fit has said so
        return CropCache(root, spec, device)


def fill_crops(
    cache: CropCache,
    manifest: Manifest,
    rows: npt.NDArray[np.int64],
    trainer: pl.Trainer | None,
    *,
    on_error: Literal["raise", "skip"],
    on_miss: OnMiss,
    earlier: PreparedCrops | None = None,
) -> PreparedCrops:
    """Makes the crops that are missing; each process makes its share, and waits for the others.

    Args:
        cache: Where crops are kept.
        manifest: The photographs.
        rows: Rows whose crops are needed.
        trainer: Whose processes share the work; None for this process alone.
        on_error: Whether an unreadable photograph is an error or is left out.
        on_miss: Whether a missing crop is made, or is an error.
        earlier: Crops of an earlier stage, which stay loadable.

    Returns:
        The crops of these rows and of the earlier stage.

    Raises:
        KDConvNeXtError: A photograph cannot be read, or a crop is missing that may not be made.
    """
    if on_miss == "raise":
        cache.require(manifest, rows)
    if trainer and trainer.is_global_zero:
        coming = announcement(cache, manifest, cache.survey(manifest, rows))
        if coming:
            say(trainer, coming)
    if trainer and trainer.world_size > 1:
        cache.fill(manifest, rows[trainer.global_rank :: trainer.world_size], on_error="skip")
        trainer.strategy.barrier("crops")
    crops = replace(cache.fill(manifest, rows, on_error=on_error), on_miss=on_miss)
    if trainer and trainer.is_global_zero and crops.failed:
        first = next(iter(crops.failed.values()))
        say(trainer, f"Warning: {counted(len(crops.failed), 'crop')} left out; the first: {first}")
    if earlier is None:
        return crops
    return replace(
        crops,
        regions=earlier.regions | crops.regions,
        keys=earlier.keys | crops.keys,
        failed=earlier.failed | crops.failed,
    )


def packed_crops(crops: PreparedCrops, trainer: pl.Trainer | None) -> Crops:
    """Packs crops into one memory-mapped file; the first process of a machine writes it.

    Args:
        crops: All crops of a manifest.
        trainer: Whose processes wait for the file; None for this process alone.

    Returns:
        The crops, read from that file.

    Raises:
        KDConvNeXtError: They cannot be packed.
    """
    if trainer and trainer.local_rank != 0:
        trainer.strategy.barrier("packed")
        return pack(crops)
    packed = pack(crops)
    if trainer:
        trainer.strategy.barrier("packed")
    return packed
