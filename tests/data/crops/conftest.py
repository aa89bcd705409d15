"""What tests of crops share."""

import pytest


@pytest.fixture
def few(tiny_manifest, tmp_path):
    """A manifest of every twentieth region, in a folder of its own."""
    head, *rows = tiny_manifest.read_text().splitlines()
    manifest = tmp_path / "few.csv"
    manifest.write_text("\n".join([head, *(f"{tiny_manifest.parent}/{row}" for row in rows[::20])]) + "\n")
    return manifest
