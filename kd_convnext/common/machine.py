"""Detects the hardware, chooses the default precision for it, and reads the memory used and free."""

import ctypes
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any, Literal

from kd_convnext.errors import ConfigError, Finding

Precision = Literal["bf16-mixed", "32-true"]

BF16_PAYS = 1.5
"""How much faster than float32 a CPU's bf16 matrix product must be: mixed precision adds conversions to it."""

_CPU_INFO = Path("/proc/cpuinfo")
_PILLOW_KEPT = 48 << 20  # bytes, those of 12 megapixels
_SIDE, _ROUNDS = 512, 7
_STATUS = Path("/proc/self/status")
_MEMORY, _GROUP, _GROUPS = Path("/proc/meminfo"), Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def peak_memory() -> int:
    """Returns the most resident memory this process has had, in bytes.

    Not ``ru_maxrss`` where the system has better: on Linux that begins with the memory of the process that started
    this one.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    # Linux counts kilobytes, macOS bytes.
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory() -> int | None:
    """Returns how much memory this process may still take, in bytes: of the machine, and of its container or job.

    Returns:
        None where the system does not say; Linux does.
    """
    free = []
    with suppress(OSError, ValueError, StopIteration):
        found = next(line for line in _MEMORY.read_text().splitlines() if line.startswith("MemAvailable:"))
        free.append(int(found.split()[1]) * 1024)
    with suppress(OSError, StopIteration):
        own = next(line[3:] for line in _GROUP.read_text().splitlines() if line.startswith("0::"))
        place = _GROUPS / own.lstrip("/")
        for folder in (place, *place.parents):
            with suppress(OSError, ValueError):  # no limit stands there
                limit, used = (int((folder / name).read_text()) for name in ("memory.max", "memory.current"))
                kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                # What can be read or made again is given up first.
                spare = ("inactive_file", "active_file", "slab_reclaimable")
                free.append(limit - used + sum(int(kept.get(name, 0)) for name in spare))
    return max(0, min(free)) if free else None


def require_memory(size: int, what: str, place: str, remedy: str) -> None:
    """Refuses work that does not fit into the free memory, before it is begun; where nothing is known nothing is.

    Args:
        size: In bytes.
        what: What takes it.
        place: The option that decides how much.
        remedy: What to do where it does not fit.

    Raises:
        ConfigError: It does not fit.
    """
    free = free_memory()
    if free is not None and size > free:
        what = f"{what} takes {size / 1e9:.3g} GB of memory, {free / 1e9:.3g} GB are free"
        raise ConfigError(Finding(place, what, remedy))


@dataclass(frozen=True)
class PrecisionChoice:
    """Names the default precision of a device.

    Attributes:
        value: As Lightning's trainer takes it.
        reason: Why, in a few words.
    """

    value: Precision
    reason: str


def device_kind(accelerator: object) -> str:
    """Names the kind of device that Lightning will take.

    Args:
        accelerator: Its ``accelerator`` option, such as ``auto``.

    Returns:
        ``cuda``, ``cpu``, or another of Lightning's names.
    """
    import torch

    if accelerator in ("auto", "gpu", None):
        if torch.backends.mps.is_available():
            return "mps"
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(accelerator)


@cache
def best_precision(device: str) -> PrecisionChoice:
    """Chooses the arithmetic of training: bf16 only where the hardware computes in it and it pays.

    Measured where hardware alone does not decide: bf16 without AMX is slower than float32 on most CPUs, and with it
    not always faster. Takes less than 0.3 s, once a process, and only on CPUs with AMX.

    Args:
        device: ``cuda``, ``cpu``, or another of Lightning's names.

    Returns:
        The choice; ``32-true`` where nothing is known.
    """
    if device == "cuda":
        import torch

        if torch.cuda.is_bf16_supported(including_emulation=False):
            return PrecisionChoice("bf16-mixed", "the GPU computes in it")
        return PrecisionChoice("32-true", "this GPU has no bf16")
    if device != "cpu":
        return PrecisionChoice("32-true", "known to work everywhere")
    if not _has_amx():
        return PrecisionChoice("32-true", "a CPU without AMX")
    gain = bf16_gain()
    reason = f"bf16 is {gain:.1f} times as fast, measured"
    return PrecisionChoice("bf16-mixed" if gain >= BF16_PAYS else "32-true", reason)


def bf16_gain() -> float:
    """Measures how many times faster than float32 this CPU multiplies matrices in bf16, with torch's threads.

    Returns:
        The ratio of the medians of interleaved products.
    """
    import torch

    wide = torch.randn(_SIDE, _SIDE, generator=torch.Generator().manual_seed(0))
    sides = {torch.float32: wide, torch.bfloat16: wide.bfloat16()}
    seconds: dict[torch.dtype, list[float]] = {kind: [] for kind in sides}
    for _ in range(_ROUNDS + 1):
        for kind, matrix in sides.items():
            begun = time.perf_counter()
            matrix @ matrix
            seconds[kind].append(time.perf_counter() - begun)
    # The first products set the libraries up.
    return median(seconds[torch.float32][1:]) / median(seconds[torch.bfloat16][1:])


def _has_amx() -> bool:
    return _CPU_INFO.is_file() and "amx_bf16" in _CPU_INFO.read_text().split()


def release_free_memory() -> None:
    """Returns free memory of the C library (glibc) to the system, also from between what is in use."""
    with suppress(OSError, AttributeError, TypeError):  # no glibc
        ctypes.CDLL(None).malloc_trim(0)


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8  # numbers of glibc's mallopt


_KEEP = {_MMAP_MAX: 0, _TRIM_THRESHOLD: 2**31 - 1, _ARENA_MAX: 1}


# Touching them ends glibc's own adapting for good, so they are left where it arrives in a process that uses tensors:
# its starting values would slow down a training that follows.
_AFTERWARDS = {_MMAP_MAX: 65536, _MMAP_THRESHOLD: 32 << 20, _TRIM_THRESHOLD: 64 << 20, _ARENA_MAX: 0}


def available_cores() -> int:
    """Returns how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def pillow_memory_kept() -> Iterator[None]:
    """Keeps the memory of one photograph in Pillow during the block, unless ``PILLOW_BLOCKS_MAX`` says how much.

    Else it comes from the system page by page, a quarter of the time of reading 12 megapixels in a thread.
    """
    from PIL import Image

    core: Any = Image.core  # type: ignore[attr-defined]
    before = core.get_blocks_max()
    if "PILLOW_BLOCKS_MAX" not in os.environ:
        core.set_blocks_max(max(before, _PILLOW_KEPT // core.get_block_size()))
    try:
        yield
    finally:
        core.set_blocks_max(before)


@contextmanager
def memory_kept() -> Iterator[None]:
    """Keeps freed memory in the C library (glibc) during the block; returns it to the system at the end.

    By default it hands large blocks back at once, and each layer's output comes from the system anew, zeroed page by
    page: a third of the time of a 256 px crop (``benchmarks/data/super_resolution.py``).
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
