import importlib.util
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.ESRGAN import ESRGAN

from kd_convnext.common.files import sha256_of
from kd_convnext.data.crops.pool import crop_pool
from kd_convnext.data.crops.upscaling.build import build_upscaler
from kd_convnext.data.crops.upscaling.network import NetworkUpscaler
from kd_convnext.data.crops.upscaling.upscaler import PIXEL_BUDGET, UpscalerIdentity
from kd_convnext.errors import UpscalerError

needs_reference = pytest.mark.skipif(
    importlib.util.find_spec("realesrgan") is None or importlib.util.find_spec("basicsr") is None,
    reason="kd-convnext[realesrgan] is not installed (it does not build on Python 3.13)",
)


def _crop(height, width, seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return cv2.GaussianBlur(noise, (5, 5), 1.5) if min(height, width) > 2 else noise


@pytest.fixture(scope="module")
def srvgg():
    torch.manual_seed(0)
    return Compact(num_feat=8, num_conv=2, upscale=4)


@pytest.fixture
def srvgg_file(tmp_path, srvgg):
    path = tmp_path / "tiny.pth"
    torch.save({"params": srvgg.state_dict()}, path)
    return path


@pytest.fixture(params=[4, 2])
def rrdb_file(tmp_path, request):
    """A random RRDB of the authors' form: x4, and x2 with the pixels folded into channels first."""
    torch.manual_seed(1)
    fold = 4 // request.param
    old = ESRGAN(
        in_nc=3 * fold * fold, num_filters=8, num_blocks=2, scale=4, shuffle_factor=fold if fold > 1 else None
    ).state_dict()
    names = {
        "model.0": "conv_first",
        "model.1.sub.2": "conv_body",
        "model.3": "conv_up1",
        "model.6": "conv_up2",
    }
    names |= {"model.8": "conv_hr", "model.10": "conv_last"}
    state = {}
    for key, value in old.items():
        stem, kind = key.rsplit(".", 1)
        if stem not in names:  # model.1.sub.<block>.RDB<i>.conv<j>.0
            _, _, _, block, dense, conv, _ = stem.split(".")
            stem = f"body.{block}.{dense.lower()}.{conv}"
        state[f"{names.get(stem, stem)}.{kind}"] = value
    path = tmp_path / f"rrdb_x{request.param}.pth"
    torch.save({"params_ema": state}, path)
    return path


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 2), (33, 50)])
def test_srvgg_gives_the_networks_pixels(srvgg_file, srvgg, size):
    crop = _crop(*size)
    upscaler = build_upscaler("spandrel", srvgg_file)
    with torch.inference_mode():
        expected = srvgg.eval()(torch.tensor(crop).permute(2, 0, 1)[None].float() / 255)
    expected = (expected.clamp(0, 1) * 255).round()[0].permute(1, 2, 0).numpy().astype(int)
    assert np.abs(upscaler(crop).astype(int) - expected).max() <= 1
    assert upscaler(crop).dtype == np.uint8


def test_identity_names_the_weights(srvgg_file):
    identity = build_upscaler("spandrel", str(srvgg_file)).identity
    assert identity == UpscalerIdentity(
        "spandrel", "Compact", 4, sha256_of(srvgg_file), "fp32", PIXEL_BUDGET, tile_pad=4
    )


def test_file_formats_give_the_same_pixels(tmp_path, srvgg, srvgg_file):
    crop = _crop(20, 30)
    expected = build_upscaler("spandrel", srvgg_file)(crop)
    save_file(srvgg.state_dict(), tmp_path / "tiny.safetensors")
    torch.save(srvgg.state_dict(), tmp_path / "bare.pth")
    other = Compact(num_feat=8, num_conv=2, upscale=4).state_dict()
    torch.save({"params": other, "params_ema": srvgg.state_dict()}, tmp_path / "both.pth")
    torch.save({"params": other}, tmp_path / "other.pth")
    for name in ("tiny.safetensors", "bare.pth", "both.pth"):
        assert np.array_equal(build_upscaler("spandrel", tmp_path / name)(crop), expected), name
    assert not np.array_equal(build_upscaler("spandrel", tmp_path / "other.pth")(crop), expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_tiles_give_the_same_pixels_as_one_pass(srvgg_file, threads):
    upscaler = build_upscaler("spandrel", srvgg_file)
    crop = _crop(61, 90)
    before = torch.get_num_threads()
    whole = upscaler(crop)
    try:
        torch.set_num_threads(threads)
        upscaler.identity = replace(upscaler.identity, pixel_budget=24 * 24)
        assert np.array_equal(upscaler(crop), whole)
        upscaler.identity = replace(upscaler.identity, tile_pad=0)
        assert not np.array_equal(upscaler(crop), whole)
    finally:
        torch.set_num_threads(before)


def test_an_error_in_a_tile_is_an_error():
    calls = []

    def forward(crop):
        calls.append(crop.shape)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return crop

    upscaler = NetworkUpscaler(UpscalerIdentity("spandrel", "Compact", 1, pixel_budget=64, tile_pad=1), forward)
    with pytest.raises(RuntimeError, match="out of memory"):
        upscaler(_crop(20, 20))
    assert all(height * width <= 64 for height, width, _ in calls)


def test_bicubic_and_none():
    crop = _crop(7, 11)
    enlarged = build_upscaler("bicubic", None)(crop)
    assert np.array_equal(enlarged, cv2.resize(crop, (44, 28), interpolation=cv2.INTER_CUBIC))
    upscaler = build_upscaler("none", None)
    assert upscaler(crop) is crop
    assert upscaler.identity.scale == 1


@needs_reference
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (10, 13), (65, 77), pytest.param((256, 256), marks=pytest.mark.slow)])
def test_rrdb_agrees_with_the_reference(rrdb_file, size):
    ours, theirs = (build_upscaler(name, rrdb_file) for name in ("spandrel", "realesrgan"))
    scale = 4 if "x4" in rrdb_file.name else 2
    assert ours.identity.scale == theirs.identity.scale == scale
    crop = _crop(*size)
    assert ours(crop).shape == (size[0] * scale, size[1] * scale, 3)
    assert np.abs(ours(crop).astype(int) - theirs(crop)).max() <= 1


def test_rrdb_file_formats_give_the_same_pixels(rrdb_file, tmp_path):
    crop = _crop(12, 15)
    state = torch.load(rrdb_file, weights_only=True)["params_ema"]
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    save_file(state, tmp_path / "rrdb.safetensors")
    torch.save({"params": state}, tmp_path / "params.pth")
    torch.save({"params": other, "params_ema": state}, tmp_path / "both.pth")
    expected = build_upscaler("spandrel", rrdb_file)(crop)
    assert expected.any()
    for name in ("rrdb.safetensors", "params.pth", "both.pth"):
        upscaler = build_upscaler("spandrel", tmp_path / name)
        assert upscaler.identity.architecture == "ESRGAN"
        assert np.array_equal(upscaler(crop), expected), name


@needs_reference
def test_the_reference_leaves_no_stub_behind(srvgg_file):
    import sys

    build_upscaler("realesrgan", srvgg_file)
    assert "torchvision.transforms.functional_tensor" not in sys.modules


@pytest.mark.realdata
@needs_reference
@pytest.mark.parametrize("name", ["realesr-general-x4v3-fp16src", "realesr-animevideov3"])
def test_real_weights_agree_with_the_reference(shared_dir, name):
    weights = shared_dir / "weights" / f"{name}.pth"
    ours, theirs = (build_upscaler(name, weights) for name in ("spandrel", "realesrgan"))
    photograph = cv2.imread(str(min((shared_dir / "data" / "bccd" / "images").iterdir())))
    worst = 0
    for height, width in [(1, 1), (2, 5), (10, 10), (11, 64), (128, 96)]:
        crop = np.ascontiguousarray(photograph[40 : 40 + height, 60 : 60 + width, ::-1])
        difference = np.abs(ours(crop).astype(int) - theirs(crop))
        worst = max(worst, int(difference.max()))
    assert worst <= 1


@pytest.mark.realdata
def test_real_weights_tile_exactly(shared_dir):
    upscaler = build_upscaler("spandrel", shared_dir / "weights" / "realesr-general-x4v3-fp16src.pth")
    photograph = cv2.imread(str(min((shared_dir / "data" / "bccd" / "images").iterdir())))
    crop = np.ascontiguousarray(photograph[:90, :130, ::-1])
    whole = upscaler(crop)
    upscaler.identity = replace(upscaler.identity, pixel_budget=110 * 110)
    assert upscaler.identity.tile_pad == 34
    assert np.array_equal(upscaler(crop), whole)


class _Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["spandrel", "realesrgan"])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_code_in_the_weights_is_never_run(tmp_path, monkeypatch, name, writer):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    touched, path = tmp_path / "touched", tmp_path / "evil.pth"
    content = {"params": {"body.0.weight": _Payload(touched)}}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(UpscalerError, match=r"evil\.pth"):
        build_upscaler(name, path)
    assert not touched.exists()


def test_unusable_weights_are_named(tmp_path, srvgg):
    def refused(content, match, name="bad.pth"):
        path = tmp_path / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        with pytest.raises(UpscalerError, match=match):
            build_upscaler("spandrel", path)

    refused(b"", "is empty")
    refused(b"not weights at all", "not a file of weights")
    refused(b"not weights at all", "not a file of weights", "bad.safetensors")
    refused({"params": {"weight": torch.zeros(1)}}, "no known architecture")
    refused({"params": {"weight": 1}}, "no plain set of tensors")
    refused({"params": Compact(num_in_ch=1, num_out_ch=1, num_feat=4, num_conv=1).state_dict()}, "not RGB")
    broken = srvgg.state_dict() | {"body.0.bias": torch.full((8,), float("nan"))}
    refused({"params": broken}, "not finite")
    from spandrel.architectures.DnCNN import DnCNN

    refused(DnCNN().state_dict(), "holds weights of DnCNN")


def test_missing_weights_device_and_package(tmp_path, srvgg_file, monkeypatch):
    with pytest.raises(UpscalerError, match="needs weights"):
        build_upscaler("spandrel", None)
    with pytest.raises(UpscalerError, match="there is no file"):
        build_upscaler("spandrel", tmp_path / "absent.pth")
    with pytest.raises(UpscalerError, match="--device"):
        build_upscaler("spandrel", srvgg_file, device="nonsense")
    monkeypatch.setitem(__import__("sys").modules, "realesrgan", None)
    with pytest.raises(UpscalerError, match="--upscaler spandrel"):
        build_upscaler("realesrgan", srvgg_file)


def test_passes_side_by_side_stay_within_the_bound():
    inside, most, lock = [0], [0], threading.Lock()

    def forward(crop):
        with lock:
            inside[0] += crop.size // 3
            most[0] = max(most[0], inside[0])
        time.sleep(0.01)
        with lock:
            inside[0] -= crop.size // 3
        return crop

    identity = UpscalerIdentity("spandrel", "Compact", 1, None, pixel_budget=900)
    for bound, expected in ((0, 900), (250, 900), (400, 1000)):
        most[0] = 0
        network = NetworkUpscaler(identity, forward, in_flight=bound)
        crops = [np.zeros((10, 10, 3), np.uint8)] * 12 + [np.zeros((30, 30, 3), np.uint8)] * 2
        with ThreadPoolExecutor(4) as pool:
            assert len(list(pool.map(network, crops))) == 14
        assert most[0] <= expected, bound


def test_a_pass_that_fails_makes_room_again():
    crop = np.zeros((10, 10, 3), np.uint8)
    results = iter([RuntimeError("out of memory"), crop])

    def forward(crop):
        result = next(results)
        if isinstance(result, Exception):
            raise result
        return result

    network = NetworkUpscaler(UpscalerIdentity("spandrel", "Compact", 1, None, pixel_budget=900), forward, in_flight=0)
    with pytest.raises(RuntimeError):
        network(crop)
    assert network(crop).shape == crop.shape


def test_a_filling_leaves_torchs_threads_as_they_were(srvgg_file, tmp_path):
    before = torch.get_num_threads()
    seen = []
    network = build_upscaler("spandrel", srvgg_file)
    try:
        torch.set_num_threads(2)
        with crop_pool(network) as pool:
            seen = list(pool.map(lambda _: (time.sleep(0.05), torch.get_num_threads())[1], range(4)))
        assert seen == [1] * 4
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
