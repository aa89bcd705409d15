"""Networks in bfloat16: nearly the same picture, the same one with any number of threads, and entries of its own."""

import cv2
import numpy as np
import pytest
import torch
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN

from kd_convnext.cli import main
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.spec import CropSpec, comparable
from kd_convnext.data.crops.upscaling.build import build_upscaler
from kd_convnext.data.manifest.manifest import read_manifest

SIZES = [(1, 1), (7, 2), (33, 50), (64, 40)]


def crop_of(height, width):
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 1.5) if min(height, width) > 2 else noise


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights")
    torch.save({"params": Compact(num_feat=16, num_conv=2, upscale=4).state_dict()}, folder / "srvgg.pth")
    torch.save(ESRGAN(num_filters=16, num_blocks=1).state_dict(), folder / "rrdb.pth")
    return folder


@pytest.mark.parametrize("file", ["srvgg.pth", "rrdb.pth"])
def test_a_few_levels_from_float32_at_every_size(weights, file):
    wide, narrow = (build_upscaler("spandrel", weights / file, precision=name) for name in ("float32", "bfloat16"))
    assert (wide.identity.precision, narrow.identity.precision) == ("fp32", "bf16")
    for size in SIZES:
        apart = cv2.absdiff(wide(crop_of(*size)), narrow(crop_of(*size)))
        assert apart.max() <= 4, size
    assert apart.max() > 0


@pytest.mark.parametrize("size", SIZES)
def test_threads_change_no_pixel(weights, size):
    upscaler, threads = build_upscaler("spandrel", weights / "srvgg.pth", precision="bfloat16"), torch.get_num_threads()
    try:
        found = []
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(upscaler(crop_of(*size)))
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(found[0], found[1]) and np.array_equal(found[0], found[2])


def words_for(manifest, weights, cache):
    return ["prepare", str(manifest), f"--cache_dir={cache}", f"--sr_weights={weights / 'srvgg.pth'}"]


def test_prepare_makes_entries_of_its_own_with_torch(weights, few, tmp_path):
    words = [*words_for(few, weights, tmp_path), "--crops.store_size=40"]
    assert main([*words, "--crops.sr_precision=bfloat16"]) == 0
    options = {"sr_weights": str(weights / "srvgg.pth"), "store_size": 40}
    narrow, wide = CropSpec(**options, sr_precision="bfloat16"), CropSpec(**options)
    manifest = read_manifest(str(few))
    assert not CropCache(tmp_path, narrow).survey(manifest).missing
    assert len(CropCache(tmp_path, wide).survey(manifest).found) == 0
    assert narrow.resolved().upscaler == "spandrel"
    assert comparable(narrow.identity()) != comparable(wide.identity())


def test_refusals(weights, few, tmp_path, capsys):
    words = words_for(few, weights, tmp_path)
    assert main([*words, "--crops.sr_precision=bfloat16", "--upscaler=ncnn"]) == 2
    assert "choose --upscaler spandrel" in capsys.readouterr().err
    assert main([*words, "--crops.sr_precision=int8"]) == 2
    assert "bfloat16" in capsys.readouterr().err
