"""Loads whole batches: loader processes write pictures straight into memory that they share with the trainer.

The loader of torch takes new shared memory for every batch, sends a file handle for each of its tensors, and gives the
memory back: more work than drawing the views. Here a batch lies in one of a few places, made once and inherited by the
processes, and a place is free again when the last tensor of its batch is gone. What crosses is its number.
"""

import mmap
import multiprocessing
import os
import sys
import weakref
from collections.abc import Sequence
from itertools import count
from multiprocessing.synchronize import Semaphore
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from kd_convnext.common.arrays import Pixels
from kd_convnext.data.loading.dataset import Batch, Sample, SpecimenDataset, View
from kd_convnext.data.loading.watched import PATIENCE, WatchedLoader

_PREFETCHED = 2
"""Batches that each process makes ahead, torch's own number."""

_HELD = 4
"""Batches that the trainer may hold: in use, next, being pinned, and one more. Of further ones each gets new memory."""

_SMALL = 1 << 16
"""Bytes up to which a tensor is cheaper to copy through the pipe than to send as a handle."""


def specimen_loader(dataset: SpecimenDataset, batch_size: int, num_workers: int, **options: Any) -> DataLoader[Any]:
    """Builds a loader of batches.

    Args:
        dataset: Whose crops.
        batch_size: Images a batch.
        num_workers: Loader processes; 0 for none.
        **options: More for torch's loader: ``sampler``, ``drop_last``, ``pin_memory``.

    Returns:
        A loader that yields a `Batch`.
    """
    # Where processes are not forked they cannot inherit memory: torch's way, slower, does.
    forked = num_workers > 0 and may_fork()
    places = Places(_PREFETCHED * num_workers + _HELD, (batch_size, *dataset.shape)) if forked else None
    return WatchedLoader(
        _Whole(dataset, places),
        batch_size=batch_size,
        num_workers=num_workers,
        timeout=PATIENCE if num_workers else 0,
        persistent_workers=num_workers > 0,
        worker_init_fn=_one_thread,
        collate_fn=_identity_collate,
        multiprocessing_context="fork" if forked else None,
        **options,
    )


def may_fork() -> bool:
    """Returns whether loader processes are forked: on Linux, unless the program has chosen another start method.

    By name and not by default: Python 3.14 starts processes otherwise unless asked.
    """
    return sys.platform == "linux" and multiprocessing.get_start_method(allow_none=True) in (None, "fork")


class Places:
    """Memory for a few batches, shared with the processes that are forked while it exists.

    Only what is used takes memory: the first free place is taken first.

    Attributes:
        pictures: uint8 [P, B, C, H, W].
        free: Of each place.
    """

    def __init__(self, places: int, shape: tuple[int, ...]) -> None:
        """Reserves address space.

        Args:
            places: How many batches, P.
            shape: Of a full batch, [B, C, H, W].
        """
        whole = (places, *shape)
        self.pictures = np.frombuffer(mmap.mmap(-1, int(np.prod(whole))), np.uint8).reshape(whole)
        self.free: list[Semaphore] = [multiprocessing.Semaphore(1) for _ in range(places)]
        self.number = next(_NUMBERS)
        _KNOWN[self.number] = self

    def take(self) -> int | None:
        """Takes a place, in a loader's process; None where all are in use."""
        return next((place for place, free in enumerate(self.free) if free.acquire(block=False)), None)

    def receive(self, place: int, images: int) -> Tensor:
        """Gives the pictures of a place to the trainer, until the last tensor that shows them is gone.

        Args:
            place: Taken by a process.
            images: How many pictures it has written.

        Returns:
            uint8 [images, C, H, W].
        """
        pictures = self.pictures[place, :images]
        # The tensor keeps this very array alive.
        weakref.finalize(pictures, _give_back, self.free[place], os.getpid()).atexit = False
        return torch.from_numpy(pictures)


def _give_back(free: Semaphore, holder: int) -> None:
    if os.getpid() == holder:  # a process forked meanwhile has a copy of the tensor to forget, not the place
        free.release()


_KNOWN: weakref.WeakValueDictionary[int, Places] = weakref.WeakValueDictionary()
"""By number: what comes out of a pipe finds the memory that it is in."""

_NUMBERS = count()


class _Whole(Dataset[Any]):
    """Returns whole batches to torch's loader."""

    def __init__(self, dataset: SpecimenDataset, places: Places | None) -> None:
        self.dataset = dataset
        self.places = places

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: int | View) -> Sample:
        return self.dataset[key]

    def __getitems__(self, keys: Sequence[int | View]) -> Batch:
        place = self.places.take() if self.places is not None and get_worker_info() is not None else None
        if self.places is None or place is None:
            return self.dataset.batch(keys)
        try:
            batch = self.dataset.batch(keys, self.places.pictures[place, : len(keys)])
        except BaseException:
            self.places.free[place].release()
            raise
        return cast(Batch, _Parcel(batch, self.places.number, place))

    def __getstate__(self) -> dict[str, object]:
        """Leaves the memory behind: a copy elsewhere has no processes that could inherit it."""
        return {"dataset": self.dataset, "places": None}


class _Parcel(dict[str, Any]):
    """A batch on its way to the trainer, where it arrives as a plain dictionary."""

    def __init__(self, batch: Batch, places: int, place: int) -> None:
        super().__init__(batch)
        self._from = places, place

    def __reduce__(self) -> tuple[Any, ...]:
        rest = {name: value for name, value in self.items() if name != "image"}
        small = {name: value.numpy() for name, value in rest.items() if _is_small(value)}
        large = {name: value for name, value in rest.items() if name not in small}
        return _unpacked, (*self._from, len(self["image"]), small, large)


def _unpacked(places: int, place: int, images: int, small: dict[str, Pixels], large: dict[str, Any]) -> dict[str, Any]:
    image = _KNOWN[places].receive(place, images)
    return {"image": image, **{name: torch.from_numpy(value) for name, value in small.items()}, **large}


def _is_small(value: object) -> bool:
    return isinstance(value, Tensor) and value.nbytes <= _SMALL


def _identity_collate(batch: Any) -> Any:
    return batch


def _one_thread(worker: int) -> None:
    # OpenCV would start as many threads as there are cores in each of the workers.
    import cv2

    cv2.setNumThreads(0)
