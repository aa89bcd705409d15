import os
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
os.environ.setdefault("WANDB_MODE", "offline")

REPOSITORY = Path(__file__).resolve().parent.parent


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
