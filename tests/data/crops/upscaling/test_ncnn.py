"""ncnn against torch: the same network, the same picture; and against itself: the same pixels."""

import json
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from helpers.paths import REPOSITORY
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN

from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.spec import CropSpec, comparable
from kd_convnext.data.crops.upscaling import ncnn as backend
from kd_convnext.data.crops.upscaling.build import build_upscaler
from kd_convnext.data.crops.upscaling.real_esrgan import _describe, _load
from kd_convnext.data.manifest.images import read_image
from kd_convnext.errors import UpscalerError

pytest.importorskip("ncnn", reason="kd-convnext[ncnn] is not installed")

SIZES = [(1, 1), (1, 9), (7, 2), (12, 12), (33, 50), (64, 40)]


def crop_of(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 1.5) if min(height, width) > 2 else noise


def near(ours, theirs, share=1e-3):
    difference = cv2.absdiff(ours, theirs)
    return ours.shape == theirs.shape and difference.max() <= 1 and (difference > 0).mean() <= share


@pytest.fixture(scope="module")
def srvgg(tmp_path_factory):
    """Random weights of general-x4v3's width, a few layers."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "srvgg.pth"
    torch.save({"params": Compact(num_feat=64, num_conv=4, upscale=4).state_dict()}, path)
    return path


def test_srvgg_is_torchs_picture_at_every_size(srvgg):
    theirs, ours = (build_upscaler(name, srvgg) for name in ("spandrel", "ncnn"))
    for size in SIZES:
        assert near(ours(crop_of(*size)), theirs(crop_of(*size))), size


@pytest.mark.parametrize("fold", [None, 2])
def test_rrdb_is_torchs_picture_at_every_size(tmp_path, fold):
    torch.manual_seed(1)
    network = ESRGAN(in_nc=3 * (fold or 1) ** 2, num_filters=16, num_blocks=2, shuffle_factor=fold)
    torch.save(network.state_dict(), tmp_path / "rrdb.pth")
    theirs, ours = (build_upscaler(name, tmp_path / "rrdb.pth") for name in ("spandrel", "ncnn"))
    assert ours.identity.scale == (4 if fold is None else 2)
    for size in SIZES:
        assert near(ours(crop_of(*size)), theirs(crop_of(*size))), size


def test_memory_of_an_rrdb_pass_is_a_few_enlarged_pictures(tmp_path):
    torch.save(ESRGAN(num_blocks=1).state_dict(), tmp_path / "rrdb.pth")
    words = ["-m", "benchmarks.data.upscaler_memory", "--only", str(tmp_path / "rrdb.pth"), "ncnn", "128"]
    done = subprocess.run([sys.executable, *words], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    _, in_all, before = json.loads(done.stdout)
    enlarged = 64 * 512 * 512 * 4 / 1e6  # MB of a layer's result
    assert in_all - before < 10 * enlarged


def test_formats_and_blends(tmp_path, srvgg):
    state = torch.load(srvgg, weights_only=True)["params"]
    weak = {key: value * 0.5 for key, value in state.items()}
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"params": weak}, tmp_path / "weak.pth")
    crop = crop_of(20, 30)
    assert np.array_equal(build_upscaler("ncnn", tmp_path / "a.safetensors")(crop), build_upscaler("ncnn", srvgg)(crop))
    options = {"weak": tmp_path / "weak.pth", "strength": 0.3}
    theirs, ours = (build_upscaler(name, srvgg, **options) for name in ("spandrel", "ncnn"))
    assert near(ours(crop), theirs(crop))
    assert not np.array_equal(ours(crop), build_upscaler("ncnn", srvgg)(crop))


def test_threads_and_passes_side_by_side_change_no_pixel(srvgg):
    weights = _load(srvgg)
    passes = [backend.ncnn_forward(_describe(srvgg, weights.tensors), weights.tensors, n) for n in (1, 2, 3)]
    for size in SIZES:
        first, *others = [one(crop_of(*size)) for one in passes]
        assert all(np.array_equal(first, other) for other in others), size
    crops = [crop_of(30 + number, 41, number) for number in range(8)]
    alone = [passes[0](crop) for crop in crops]
    with ThreadPoolExecutor(4) as pool:
        assert all(np.array_equal(*pair) for pair in zip(alone, pool.map(passes[0], crops), strict=True))


def test_tiles_are_one_pass_within_rounding(srvgg):
    upscaler = build_upscaler("ncnn", srvgg)
    crop = crop_of(90, 130)
    whole = upscaler(crop)
    assert upscaler.identity.tile_pad % backend.WINOGRAD_SIDE == 0
    upscaler.identity = replace(upscaler.identity, pixel_budget=40 * 40)
    tiled = upscaler(crop)
    assert near(tiled, whole, share=1e-4)
    assert np.array_equal(tiled, upscaler(crop))
    upscaler.identity = replace(upscaler.identity, tile_pad=0)
    assert not near(upscaler(crop), whole)


def test_a_pass_lets_other_threads_run(srvgg):
    upscaler, ticks, done = build_upscaler("ncnn", srvgg), [0], threading.Event()

    def tick():
        while not done.wait(0.001):
            ticks[0] += 1

    beside = threading.Thread(target=tick)
    beside.start()
    upscaler(crop_of(400, 400))
    done.set()
    beside.join()
    assert ticks[0] >= 5


def test_auto_takes_it_on_a_cpu_where_it_is_installed(srvgg, monkeypatch):
    spec = CropSpec(sr_weights=str(srvgg))
    assert spec.resolved().upscaler == "ncnn"
    assert spec.resolved("cuda").upscaler == "spandrel"
    assert CropSpec(sr_weights=str(srvgg), upscaler="spandrel").resolved().upscaler == "spandrel"
    ours, theirs = (replace(spec, upscaler=name).identity() for name in ("ncnn", "spandrel"))
    assert ours != theirs
    assert comparable(ours) == comparable(theirs)
    monkeypatch.setattr("kd_convnext.data.crops.upscaling.build.ncnn_installed", lambda: False)
    assert spec.resolved().upscaler == "spandrel"


@pytest.mark.parametrize("file", ["rrdb.pth", "rrdb.safetensors"])
@pytest.mark.parametrize("authors_names", [True, False])
def test_auto_leaves_rrdb_to_torch_and_a_cache_of_ncnn_in_use(tmp_path, file, authors_names):
    state = ESRGAN(num_filters=4, num_blocks=1).state_dict()  # spandrel's names, which older files have
    if authors_names:
        state = {authors_name(key): value for key, value in state.items()}
    save_file(state, tmp_path / file) if file.endswith("safetensors") else torch.save(state, tmp_path / file)
    spec = CropSpec(sr_weights=str(tmp_path / file), store_size=32)
    assert spec.resolved().upscaler == "spandrel"
    assert CropCache(tmp_path, spec).spec.upscaler == "spandrel"
    CropCache(tmp_path, replace(spec, upscaler="ncnn")).write_configuration()
    assert CropCache(tmp_path, spec).spec.upscaler == "ncnn"


def authors_name(key):
    """The name that x4plus has for a tensor which spandrel calls so."""
    key = re.sub(r"^model\.1\.sub\.0\.RDB(\d)\.conv(\d)\.0", r"body.0.rdb\1.conv\2", key)
    names = {"0": "conv_first", "3": "conv_up1", "6": "conv_up2", "8": "conv_hr", "10": "conv_last"}
    key = re.sub(r"^model\.(\d+)\.(weight|bias)", lambda found: f"{names[found[1]]}.{found[2]}", key)
    return key.replace("model.1.sub.1.", "conv_body.")


def test_refusals(srvgg, monkeypatch):
    with pytest.raises(UpscalerError, match="--upscaler spandrel"):
        build_upscaler("ncnn", srvgg, device="cuda")
    monkeypatch.setitem(__import__("sys").modules, "ncnn", None)
    with pytest.raises(UpscalerError, match=r"kd-convnext\[ncnn\]"):
        build_upscaler("ncnn", srvgg)


@pytest.mark.realdata
def test_real_weights(shared_dir):
    weights = shared_dir / "weights" / "realesr-general-x4v3-fp16src.pth"
    photograph = read_image(min((shared_dir / "data" / "bccd" / "images").iterdir()))
    theirs, ours = (build_upscaler(name, weights) for name in ("spandrel", "ncnn"))
    for height, width in [(1, 1), (2, 5), (11, 64), (128, 96)]:
        crop = np.ascontiguousarray(photograph[40 : 40 + height, 60 : 60 + width])
        assert near(ours(crop), theirs(crop), share=2e-4 if height > 20 else 1e-2)
