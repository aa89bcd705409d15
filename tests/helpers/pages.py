"""The local page in tests: its application in this process, or the command in one of its own."""

import contextlib
import io
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import uvicorn
from PIL import Image
from starlette.testclient import TestClient

from helpers.dicom import dicom
from helpers.paths import REPOSITORY
from kd_convnext.page.app import Parts, create_app
from kd_convnext.page.guard import Access
from kd_convnext.page.server import bound_socket

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


def photograph_of(kind: str, folder: Path) -> Path:
    """Writes a photograph of 60 x 40 pixels in a format that no browser shows: tiff, heic, dicom."""
    # Archives name files without an ending.
    file = folder / ("IM0001" if kind == "dicom" else f"a.{kind}")
    if kind == "dicom":
        return dicom(file, np.asarray(picture()))
    if kind == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    picture().save(file, {"heic": "HEIF", "tiff": "TIFF"}[kind])
    return file


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


@contextlib.contextmanager
def running(parts: Parts):
    """Serves the page to real browsers from a thread; yields its address without the token."""
    listening = bound_socket("127.0.0.1", 0)
    port = listening.getsockname()[1]
    app = create_app(parts, Access(TOKEN, port))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started and time.monotonic() < end:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=20)
        listening.close()


class Watched:
    """A page in Chromium that may speak to one address alone, with everything that went wrong in it."""

    def __init__(self, browser, base, **options):
        self.base, self.wrong = base, []
        self.context = browser.new_context(**{"viewport": {"width": 1280, "height": 860}, **options})
        self.context.route("**/*", self._route)
        self.page = self.context.new_page()
        self.page.set_default_timeout(15_000)
        self.page.on("pageerror", lambda error: self.wrong.append(f"error: {error}"))
        self.page.on(
            "console", lambda message: message.type == "error" and self.wrong.append(f"console: {message.text}")
        )
        self.page.on("response", lambda found: found.status >= 400 and self.wrong.append(f"{found.status} {found.url}"))
        self.page.on("dialog", lambda dialog: (self.wrong.append(f"dialog {dialog.message}"), dialog.dismiss()))

    def _route(self, route):
        address = route.request.url
        if address.startswith((self.base + "/", "data:", "blob:")):
            route.continue_()
        else:
            self.wrong.append(f"asked elsewhere: {address}")
            route.abort()

    def enter(self, part=""):
        self.page.goto(f"{self.base}/?token={TOKEN}")
        if part:
            self.page.goto(f"{self.base}/#{part}")
        return self.page

    def drag(self, start, end, selector=".view"):
        """Drags with the mouse; places are shares of the element's sides."""
        frame = self.page.locator(selector).bounding_box()
        x, y = ([frame["x"] + frame["width"] * at[0], frame["y"] + frame["height"] * at[1]] for at in (start, end))
        self.page.mouse.move(*x)
        self.page.mouse.down()
        self.page.mouse.move((x[0] + y[0]) / 2, (x[1] + y[1]) / 2)
        self.page.mouse.move(*y)
        self.page.mouse.up()

    def until(self, condition, seconds=30):
        """Waits for something outside the browser; requests go on meanwhile, which they do not while Python sleeps."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen"
            self.page.wait_for_timeout(50)

    def nameless(self):
        """Lists what a screen reader can reach but has no name for."""
        tree = self.context.new_cdp_session(self.page).send("Accessibility.getFullAXTree")["nodes"]
        found = []
        for node in tree:
            role = node.get("role", {}).get("value")
            focusable = any(
                entry["name"] == "focusable" and entry["value"]["value"] for entry in node.get("properties", [])
            )
            if node.get("ignored") or not focusable or role in ("RootWebArea", "main", "generic", "Iframe"):
                continue
            if not node.get("name", {}).get("value", "").strip():
                found.append(role)
        return found

    def overflow(self):
        """Returns by how many pixels the page is wider than its window."""
        return self.page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
