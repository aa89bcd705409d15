"""Distributes the crops to make over the cores of this machine."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from kd_convnext.common.machine import available_cores, memory_kept, pillow_memory_kept
from kd_convnext.data.crops.upscaling.network import NetworkUpscaler
from kd_convnext.data.crops.upscaling.upscaler import Upscaler

_MOST_WORKERS = 4


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
        workers = min(_MOST_WORKERS, available_cores())
        with pillow_memory_kept(), _closing(ThreadPoolExecutor(workers, "crops")) as pool:
            yield pool
        return
    import torch

    threads = torch.get_num_threads()
    workers = min(_MOST_WORKERS, threads)
    try:
        # torch counts threads for each thread by itself ...
        pool = ThreadPoolExecutor(workers, "crops", torch.set_num_threads, (threads // workers,))
        with memory_kept(), pillow_memory_kept(), _closing(pool):
            yield pool
    finally:
        torch.set_num_threads(threads)  # ... but some of its libraries have one count for all


@contextmanager
def _closing(pool: ThreadPoolExecutor) -> Iterator[ThreadPoolExecutor]:
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
