"""The same pixels from both implementations, any kind of photograph, any size, any number of threads."""

import importlib.util
from functools import lru_cache

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from spandrel.architectures.ESRGAN import ESRGAN

from kd_convnext.data.crops.make import make_crop
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.build import build_upscaler
from kd_convnext.data.manifest.boxes import Box
from kd_convnext.data.manifest.images import read_image

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("realesrgan") is None or importlib.util.find_spec("basicsr") is None,
    reason="kd-convnext[realesrgan] is not installed (it does not build on Python 3.13)",
)
MODES = ("gray", "rgba", "sixteen bit", "turned", "cmyk")


@pytest.fixture(scope="module")
def general(shared_dir):
    return shared_dir / "weights" / "realesr-general-x4v3-fp16src.pth"


@pytest.fixture(scope="module")
def photograph(shared_dir):
    """A real photograph, repeated in mirrors to 2,100 px a side; uint8 RGB."""
    image = read_image(min((shared_dir / "data" / "bccd" / "images").iterdir()))
    return cv2.copyMakeBorder(image, 0, 2100 - image.shape[0], 0, 2100 - image.shape[1], cv2.BORDER_REFLECT)


@lru_cache(maxsize=2)
def both(weights):
    return build_upscaler("spandrel", weights), build_upscaler("realesrgan", weights)


def save_as(mode, pixels, folder):
    """Writes pixels, uint8 RGB, as a file of that kind."""
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = 6
    if mode == "gray":
        image.convert("L").save(folder / "a.png")
    elif mode == "rgba":
        image.putalpha(Image.fromarray(np.full(pixels.shape[:2], 200, np.uint8)))
        image.save(folder / "a.png")
    elif mode == "sixteen bit":
        Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(folder / "a.png")
    elif mode == "turned":
        image.save(folder / "a.jpg", exif=exif)
    else:
        image.convert("CMYK").save(folder / "a.jpg")
    return next(folder.iterdir())


@pytest.mark.realdata
@needs_reference
@pytest.mark.parametrize("mode", MODES)
def test_every_kind_of_photograph(general, photograph, tmp_path, mode):
    path = save_as(mode, photograph[:60, :80], tmp_path)
    upright = read_image(path)
    assert upright.shape == ((80, 60, 3) if mode == "turned" else (60, 80, 3))
    spec = CropSpec(upscaler="spandrel", sr_weights=str(general), store_size=None)
    ours, theirs = both(general)
    found = make_crop(path, Box(10, 5, 33, 40), spec, spec.build_upscaler())
    assert np.array_equal(found, ours(np.ascontiguousarray(upright[5:45, 10:43])))
    assert found.shape == (160, 132, 3)
    expected = make_crop(path, Box(10, 5, 33, 40), spec, theirs).astype(int)
    assert np.abs(found - expected).max() <= 1
    # The picture is that of the file, enlarged: reduced again it is near to it.
    reduced = cv2.resize(found, (33, 40), interpolation=cv2.INTER_AREA).astype(int)
    assert np.abs(reduced - upright[5:45, 10:43]).mean() < 6


@pytest.mark.slow
@pytest.mark.realdata
@needs_reference
@pytest.mark.parametrize("size", [(1, 2000), (2000, 8), (8, 2000), (513, 600)])
def test_sizes_up_to_2000_agree_with_the_reference(general, photograph, size):
    crop = np.ascontiguousarray(photograph[: size[0], : size[1]])
    ours, theirs = (upscaler(crop) for upscaler in both(general))
    assert ours.shape == (size[0] * 4, size[1] * 4, 3)
    assert cv2.absdiff(ours, theirs).max() <= 1


@pytest.mark.realdata
def test_any_number_of_threads_gives_the_same_pixels_with_real_weights(general):
    upscaler = build_upscaler("spandrel", general)
    check_threads(upscaler, [(1, 1), (1, 9), (2, 2), (3, 3), (7, 5), (12, 12), (31, 33), (32, 33), (40, 64)])


def test_any_number_of_threads_gives_the_same_pixels_with_rrdb(tmp_path):
    torch.manual_seed(0)
    torch.save(ESRGAN(num_filters=64, num_blocks=1).state_dict(), tmp_path / "rrdb.pth")
    check_threads(build_upscaler("spandrel", tmp_path / "rrdb.pth"), [(1, 1), (5, 3), (9, 7), (1, 100), (33, 32)])


def check_threads(upscaler, sizes):
    before = torch.get_num_threads()
    try:
        for height, width in sizes:
            crop = np.random.default_rng(height).integers(0, 256, (height, width, 3), np.uint8)
            found = []
            for threads in (1, 2, 3, 4):
                torch.set_num_threads(threads)
                found.append(upscaler(crop))
            assert all(np.array_equal(one, found[0]) for one in found), (height, width)
    finally:
        torch.set_num_threads(before)
