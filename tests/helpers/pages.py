"""The local page in tests: its application in this process, or the command in one of its own."""

import contextlib
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from helpers.paths import REPOSITORY
from PIL import Image
from starlette.testclient import TestClient

from kd_convnext.page.app import Parts, create_app
from kd_convnext.page.guard import Access

TOKEN = "the-token"
PORT = 8734
ORIGIN = f"http://127.0.0.1:{PORT}"


def picture(width=60, height=40, seed=0) -> Image.Image:
    """A photograph of noise."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encoded(image: Image.Image, kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def photographs(folder: Path, count: int, **options) -> list[str]:
    """Writes small photographs; returns their names."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"p{number:04d}.png" for number in range(count)]
    for number, name in enumerate(names):
        picture(seed=number, **options).save(folder / name)
    return names


@contextlib.contextmanager
def client(parts: Parts, *, entered=True, access=None):
    """A browser's requests to the page: with its cookie and its origin, once it has entered."""
    app = create_app(parts, access or Access(TOKEN, PORT))
    with TestClient(app, base_url=ORIGIN, raise_server_exceptions=False) as browser:
        if entered:
            assert browser.get("/", params={"token": TOKEN}).status_code == 200
            browser.headers["origin"] = ORIGIN
        yield browser


@contextlib.contextmanager
def served(*words, **environment):
    """Starts the command; yields its process and the address with the token."""
    command = [sys.executable, "-m", "kd_convnext.cli", "page", "--port=0", "--open_browser=false", *map(str, words)]
    settings = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=settings)
    try:
        for line in process.stdout:
            if line.startswith("Page: "):
                yield process, line.removeprefix("Page: ").strip()
                break
        else:
            raise AssertionError(process.stderr.read())
    finally:
        process.terminate()
        process.communicate(timeout=20)
