import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.paths import REPOSITORY
from PIL import Image

from kd_convnext.common import figures

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("KD_CONVNEXT_CACHE", tempfile.mkdtemp(prefix="kd-convnext-tests-"))

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # So are processes that a shell starts in the background; tests of Ctrl+C, and their processes, want it.
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST = (
    "tools/test_demo.py",
    "test_readme.py",
    "test_notebooks.py",
    "experiment/running/test_cell_processes.py",
    "training/test_distributed.py",
    "reliability/test_ranks.py",
    "tools/test_paper.py",
    "test_cli.py",
    "runs/test_loggers.py",
    "tools/test_export.py",
    "modules/test_stored_teacher.py",
    "experiment/report/test_clinical.py",
    "experiment/report/test_page.py",
    "training/test_best_recipe.py",
    "training/test_before_student.py",
    "test_realdata.py",
)
"""Files that take longest: they begin, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first; the order within a file stays."""

    def place(item: pytest.Item) -> int:
        name = item.path.as_posix()
        return next((n for n, end in enumerate(LONGEST) if name.endswith(f"tests/{end}")), len(LONGEST))

    items.sort(key=place)


@pytest.fixture(autouse=True)
def _signal_handlers_kept() -> Iterator[None]:
    """Puts back what a trainer that failed in a test has left; a tool under another handler does not end by SIGTERM."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def print_dpi() -> Iterator[float]:
    """Draws figures with 100 pixels an inch, which halves the time of a fit or a test; yields what users get."""
    own = figures.PRINT_DPI
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "PRINT_DPI", 100.0)
        yield own


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder with real photographs and weights; absent outside, required in CI."""
    named = os.environ.get("KD_CONVNEXT_SHARED")
    folder = Path(named) if named else REPOSITORY.parent / "shared"
    if (folder / "data").is_dir() and (folder / "weights").is_dir():
        return folder
    reason = f"no real photographs: {folder} has no data/ and weights/ (set KD_CONVNEXT_SHARED)"
    if named or os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def tiny_manifest(tmp_path_factory) -> Path:
    """60 small photographs: five classes, six lesions each, two photographs a lesion, one box each."""
    folder = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    rows = ["image,label,lesion_id,x,y,width,height"]
    for number, label in enumerate(("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")):
        for lesion in range(6):
            for view in range(2):
                waves = np.sin(np.arange(40) * (0.2 + 0.25 * number) + rng.uniform(0, 6))
                image = 120 + 60 * waves[None, :, None] + rng.normal(0, 12, (36, 40, 3))
                name = f"{number}_{lesion}_{view}.png"
                Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / name)
                rows.append(f"{name},{label},L{number}-{lesion},2,1,36,34")
    manifest = folder / "manifest.csv"
    manifest.write_text("\n".join(rows) + "\n")
    return manifest


@pytest.fixture(scope="session")
def tiny_cache(tmp_path_factory) -> str:
    """A crop cache shared by all tests of a session."""
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="session")
def tiny_run(tiny_manifest, tiny_cache, tmp_path_factory) -> Path:
    """The checkpoint of a tiny teacher in its run folder, trained for one epoch, not calibrated."""
    from helpers import tiny
    from helpers.inference import make_run

    source = tiny.data(tiny_manifest, tiny_cache)
    return make_run(tmp_path_factory.mktemp("teacher"), source, tiny.teacher(source))
