"""Small file systems in memory, to be filled by real processes."""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """Mounts a file system of a size such as ``3m``; skips the test where that is not allowed."""
    disk = folder / "small"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode:
        pytest.skip("no small file system can be mounted here; tests with an injected ENOSPC stand for it")
    try:
        yield disk
    finally:
        subprocess.run(["umount", str(disk)], check=True)
