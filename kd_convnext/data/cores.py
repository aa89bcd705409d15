"""How crops share the cores of this machine."""

import ctypes
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from kd_convnext.data.super_resolution import NetworkUpscaler, Upscaler

_MOST_WORKERS = 4

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # numbers of glibc's mallopt
_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}
# Touching them ends glibc's own adapting for good, so they are left where it arrives in a process that uses tensors:
# its starting values would slow down a training that follows.
_AFTERWARDS = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _ARENA_MAX: 0}


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def crop_pool(upscaler: Upscaler) -> Iterator[ThreadPoolExecutor]:
    """Opens threads that make crops side by side, at most four, each with its share of the cores.

    Several passes with one thread each wait less than one pass with all threads, and decoding and encoding overlap
    with them. What is not begun when the block is left is cancelled.

    Args:
        upscaler: What the threads will run; torch is only touched where it is a network.

    Yields:
        The pool.
    """
    if not isinstance(upscaler, NetworkUpscaler):
        with _closing(ThreadPoolExecutor(min(_MOST_WORKERS, available_cores()), "crops")) as pool:
            yield pool
        return
    import torch

    threads = torch.get_num_threads()
    workers = min(_MOST_WORKERS, threads)
    try:
        # torch counts threads for each thread by itself ...
        pool = ThreadPoolExecutor(workers, "crops", torch.set_num_threads, (threads // workers,))
        with memory_kept(), _closing(pool):
            yield pool
    finally:
        torch.set_num_threads(threads)  # ... but some of its libraries have one count for all


@contextmanager
def memory_kept() -> Iterator[None]:
    """Lets the C library keep what is freed, where it is glibc; given back at the end.

    By default it hands large blocks back at once, and each layer's output comes from the system anew, zeroed page by
    page: a third of the time of a 256 px crop (``benchmarks/super_resolution.py``).
    """
    try:
        library = ctypes.CDLL(None)
        tune, trim = library.mallopt, library.malloc_trim
    except (OSError, AttributeError, TypeError):  # no glibc
        yield
        return
    for option, value in _KEEP.items():
        tune(option, value)
    try:
        yield
    finally:
        for option, value in _AFTERWARDS.items():
            tune(option, value)
        trim(0)


@contextmanager
def _closing(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
