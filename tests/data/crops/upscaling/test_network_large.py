"""Crops above the pixel budget: tiled, reduced piece by piece, within a bound of memory."""

import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from spandrel.architectures.Compact import Compact

from kd_convnext.data.crops import spec as crops
from kd_convnext.data.crops.make import enlarge
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.build import build_upscaler
from kd_convnext.data.crops.upscaling.network import NetworkUpscaler
from kd_convnext.data.crops.upscaling.upscaler import PIXEL_BUDGET, UpscalerIdentity

MEGABYTE = 2**20
STREAMED_BOUND = 1500 * MEGABYTE
"""Resident memory of a process that stores 256 px of a 24-megapixel crop, x4: with torch, but without the x4 image."""
WHOLE_BOUND = 5600 * MEGABYTE
"""The same with ``store_size`` null: the x4 image is 1.15 GB, and its PNG is made of a copy of it."""


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "tiny.pth"
    torch.save({"params": Compact(num_feat=8, num_conv=2, upscale=4).state_dict()}, path)
    return path


def smooth(height, width):
    coarse = np.random.default_rng(0).integers(0, 256, (height // 40 + 2, width // 40 + 2, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.mark.parametrize("size", [(530, 611), (300, 900)])
def test_pieces_are_the_whole(weights, size):
    crop = smooth(*size)
    for upscaler in (build_upscaler("bicubic", None), build_upscaler("spandrel", weights)):
        whole, canvas = upscaler(crop), np.zeros((size[0] * 4, size[1] * 4, 3), np.uint8)
        for top, left, pixels in upscaler.pieces(crop):
            assert pixels.size <= PIXEL_BUDGET * 16 * 3
            canvas[top : top + pixels.shape[0], left : left + pixels.shape[1]] = pixels
        assert np.array_equal(canvas, whole), upscaler.identity.name
    assert np.array_equal(next(build_upscaler("none", None).pieces(crop)).pixels, crop)


@pytest.mark.parametrize("resize", ["stretch", "pad"])
@pytest.mark.parametrize("size", [(530, 611), (2000, 140), (3, 100_000)])
@pytest.mark.parametrize("store_size", [64, 97])
def test_large_crops_are_averaged_by_area(monkeypatch, size, resize, store_size):
    crop = smooth(*size)
    spec = CropSpec(upscaler="bicubic", sr_max_side=None, store_size=store_size, resize=resize)
    found = enlarge(crop, spec, spec.build_upscaler())
    monkeypatch.setattr(crops, "PIXEL_BUDGET", 10**9)
    whole = enlarge(crop, spec, spec.build_upscaler())
    difference = np.abs(found.astype(int) - whole)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_what_may_be_averaged_in_pieces_has_a_key_of_its_own():
    def way(**options):
        return CropSpec(upscaler="bicubic", **options).identity()["interpolation"]

    assert way() == way(sr_max_side=100) == way(sr_max_side=None, store_size=None)
    assert way(sr_max_side=None) == way(sr_max_side=513) != way()


def test_an_error_in_a_piece_is_an_error():
    calls = []

    def forward(crop):
        calls.append(crop.shape)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return crop

    network = NetworkUpscaler(UpscalerIdentity("spandrel", "Compact", 1, None, pixel_budget=64 * 64), forward)
    with pytest.raises(RuntimeError, match="out of memory"):
        enlarge(smooth(600, 600), CropSpec(sr_max_side=None, store_size=32), network)
    assert all(height * width <= 64 * 64 for height, width, _ in calls)


CHILD = """
import sys
from kd_convnext.cli import main
from kd_convnext.common.machine import peak_memory
assert main(["prepare", *sys.argv[1:]]) == 0
print("peak", peak_memory())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("store_size", "bound"), [(256, STREAMED_BOUND), ("null", WHOLE_BOUND)])
def test_memory_of_24_megapixels_in_one_region(tmp_path, weights, store_size, bound):
    cv2.imwrite(str(tmp_path / "large.jpg"), smooth(4000, 6000))
    rows = ["image,label,x,y,width,height", "large.jpg,AIS,0,0,6000,4000", "large.jpg,MIA,0,0,60,40"]
    (tmp_path / "m.csv").write_text("\n".join(rows))
    words = ["--manifest", "m.csv", "--cache_dir", "cache", "--sr_weights", str(weights), "--crops.sr_max_side", "null"]
    child = subprocess.run(
        [sys.executable, "-c", CHILD, *words, "--crops.store_size", str(store_size)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "2 made" in child.stdout
    peak = int(child.stdout.split("peak ")[1])
    print(f"peak {peak / MEGABYTE:.0f} MB")
    assert peak < bound
    entry = max(tmp_path.glob("cache/*/??/*.png"), key=lambda path: path.stat().st_size)
    header = entry.read_bytes()[16:24]  # width and height of a PNG
    sides = (256, 256) if store_size == 256 else (24000, 16000)
    assert header == b"".join(side.to_bytes(4, "big") for side in sides)


def test_small_crops_have_one_thread(weights):
    seen = []
    network = build_upscaler("spandrel", weights)
    spied = NetworkUpscaler(
        network.identity, lambda crop: seen.append(torch.get_num_threads()) or network._forward(crop)
    )
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        spied(smooth(32, 32))
        spied(smooth(32, 33))
        assert seen == [1, 3]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
