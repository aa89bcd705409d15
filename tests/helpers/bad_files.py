"""Files that must be refused or answered for with care."""

from pathlib import Path

import numpy as np
from PIL import Image


class Payload:
    def __init__(self, target):
        self.target = str(target)

    def __reduce__(self):
        return Path.touch, (Path(self.target),)


def cut_short(path):
    """Makes a photograph a JPEG file whose end is missing: its header can be read, its pixels cannot."""
    with Image.open(path) as picture:
        picture.convert("RGB").save(path, format="JPEG")
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 9 // 10])


def write_odd_images(folder):
    """Files that photographs come as; returns those that must be answered for, and those that cannot be."""
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (40, 30, 3), np.uint8))
    picture.save(folder / "good.png")
    picture.convert("CMYK").save(folder / "cmyk.jpg")
    Image.fromarray(rng.integers(0, 65536, (40, 30), np.uint16)).save(folder / "deep.png")
    picture.save(folder / "moving.gif", save_all=True, append_images=[picture.rotate(90)] * 3)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "turned.jpg", exif=exif)
    picture.resize((1, 1)).save(folder / "dot.png")
    picture.convert("RGBA").save(folder / "glass.png")
    (folder / "jpeg.png").write_bytes((folder / "cmyk.jpg").read_bytes())
    good = ["good.png", "cmyk.jpg", "deep.png", "moving.gif", "turned.jpg", "dot.png", "glass.png", "jpeg.png"]
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.png").write_text("no picture")
    (folder / "cut.png").write_bytes((folder / "good.png").read_bytes()[:900])
    Image.new("1", (15_000, 14_000)).save(folder / "bomb.png")
    (folder / "folder.png").mkdir()
    return good, ["empty.jpg", "text.png", "cut.png", "bomb.png", "folder.png", "gone.png"]
