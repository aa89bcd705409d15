"""Builds the project's wheel from what git tracks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.paths import REPOSITORY


def tracked_files() -> list[Path]:
    """The files (and links) of the commit and the index."""
    if shutil.which("git") is None or not (REPOSITORY / ".git").exists():
        pytest.skip("not a git checkout")
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return [REPOSITORY / name for name in listing.stdout.split("\0") if name and os.path.lexists(REPOSITORY / name)]


def built_wheel(folder: Path) -> Path:
    """Builds in a copy without what git does not know; returns the wheel in ``folder``."""
    source = folder / "source"
    for path in tracked_files():
        target = source / path.relative_to(REPOSITORY)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target, follow_symlinks=False)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(folder), str(source)], check=True)
    (wheel,) = folder.glob("*.whl")
    return wheel
