"""The benchmarks, which no test runs whole, at least load, and the folders that they name exist."""

from importlib import import_module
from pathlib import Path

import pytest
from helpers.paths import REPOSITORY

SCRIPTS = [path.relative_to(REPOSITORY).with_suffix("") for path in (REPOSITORY / "benchmarks").rglob("*.py")]


@pytest.mark.parametrize("script", SCRIPTS, ids=str)
def test_it_loads_and_its_folders_exist(script):
    module = import_module(".".join(script.parts))
    missing = [value for value in vars(module).values() if isinstance(value, Path) and not value.exists()]
    assert not missing
