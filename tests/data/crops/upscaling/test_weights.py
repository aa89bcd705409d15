"""Weights by name, their download (from this machine alone) and their blending."""

import socket
import threading
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from spandrel.architectures.Compact import Compact

from kd_convnext.cli import main
from kd_convnext.common.files import sha256_of
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling import real_esrgan as sr_networks
from kd_convnext.data.crops.upscaling import weights as sr_weights
from kd_convnext.data.crops.upscaling.build import build_upscaler
from kd_convnext.data.crops.upscaling.real_esrgan import _blended, _load
from kd_convnext.data.crops.upscaling.weights import PACKAGED, RELEASES, Release, locate, weak_denoising, weights_dir
from kd_convnext.errors import UpscalerError

CROP = np.random.default_rng(0).integers(0, 256, (24, 36, 3), np.uint8)


def save_network(path, seed=0, features=8):
    torch.manual_seed(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params": Compact(num_feat=features, num_conv=2, upscale=4).state_dict()}, path)
    return path


class _Handler(BaseHTTPRequestHandler):
    """Serves a folder; what lies in ``cut`` ends after half of the promised bytes."""

    def __init__(self, folder, asked, *args):
        self.folder, self.asked = folder, asked
        super().__init__(*args)

    def do_GET(self):
        self.asked.append(self.path)
        path = self.folder / self.path.lstrip("/")
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if path.parent.name == "cut" else content)

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A web server on this machine with two releases; ``server.asked`` is what was asked for."""
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path / "home"))
    folder, asked = tmp_path / "web", []
    serving = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, folder, asked))
    serving.asked, serving.folder = asked, folder
    thread = threading.Thread(target=serving.serve_forever)
    thread.start()
    for seed, name in enumerate(("general-x4v3", "general-wdn-x4v3")):
        path = save_network(folder / "ok" / f"realesr-{name}.pth", seed)
        address = f"http://127.0.0.1:{serving.server_port}/ok/{path.name}"
        monkeypatch.setitem(RELEASES, name, Release(address, 4, sha256_of(path)))
    yield serving
    serving.shutdown()
    thread.join()
    serving.server_close()


def prepare(manifest, tmp_path, *options):
    words = [f"--manifest={manifest}", f"--cache_dir={tmp_path / 'crops'}", "--crops.store_size=16", *options]
    return main(["prepare", *words])


def test_fetched_once_when_asked_and_then_used_by_name(server, tiny_manifest, tmp_path, capsys):
    assert prepare(tiny_manifest, tmp_path, "--sr_weights=general-x4v3", "--download=true") == 0
    assert server.asked == ["/ok/realesr-general-x4v3.pth"]
    placed = weights_dir() / "realesr-general-x4v3.pth"
    assert placed == tmp_path / "home" / "weights" / "realesr-general-x4v3.pth"
    assert sha256_of(placed) == RELEASES["general-x4v3"].sha256
    printed = capsys.readouterr()
    assert " (Compact, x4)" in printed.out
    assert "realesr-general-x4v3.pth" in printed.err  # the progress bar
    assert prepare(tiny_manifest, tmp_path, "--sr_weights=general-x4v3", "--download=true") == 0
    assert prepare(tiny_manifest, tmp_path, f"--sr_weights={placed}") == 0
    assert "0 made, 60 found" in capsys.readouterr().out  # the same weights, whatever they are called
    assert len(server.asked) == 1


def test_both_files_of_a_blend_are_fetched(server, tiny_manifest, tmp_path):
    options = ("--sr_weights=general-x4v3", "--crops.sr_denoise=0.5")
    assert prepare(tiny_manifest, tmp_path, *options, "--download=true") == 0
    assert len(server.asked) == 2
    assert {path.name for path in weights_dir().iterdir()} == {path.name for path in (server.folder / "ok").iterdir()}


def test_never_fetched_unasked(server, tiny_manifest, tmp_path, capsys):
    assert prepare(tiny_manifest, tmp_path, "--sr_weights=general-x4v3", "--crops.sr_denoise=0.3") == 2
    said = capsys.readouterr().err
    for name in ("general-x4v3", "general-wdn-x4v3"):
        assert RELEASES[name].address in said
        assert str(weights_dir() / RELEASES[name].file) in said
    assert "--download true" in said
    assert server.asked == []


@pytest.mark.parametrize("case", ["cut", "other", "absent", "offline"])
def test_what_goes_wrong_leaves_nothing_behind(server, tiny_manifest, tmp_path, capsys, monkeypatch, case):
    release = RELEASES["general-x4v3"]
    port = server.server_port
    if case == "offline":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
    save_network(server.folder / "cut" / release.file)
    save_network(server.folder / "other" / release.file, seed=5)
    address = f"http://127.0.0.1:{port}/{case}/{release.file}"
    monkeypatch.setitem(RELEASES, "general-x4v3", replace(release, address=address))
    assert prepare(tiny_manifest, tmp_path, "--sr_weights=general-x4v3", "--download=true") == 2
    said = capsys.readouterr().err
    told = {"cut": "cut off after", "other": "is not the", "absent": "404", "offline": "refused"}[case]
    assert told in said
    assert address in said
    if case != "other":
        assert str(weights_dir() / release.file) in said
    assert not [path for path in weights_dir().glob("*") if path.is_file()]


def test_a_damaged_file_is_refused_and_fetched_again(server, tiny_manifest, tmp_path, capsys):
    placed = weights_dir() / RELEASES["general-x4v3"].file
    placed.parent.mkdir(parents=True)
    placed.write_bytes(b"half a download")
    assert prepare(tiny_manifest, tmp_path, "--sr_weights=general-x4v3") == 2
    assert f"{placed}: is not the" in capsys.readouterr().err
    assert prepare(tiny_manifest, tmp_path, "--sr_weights=general-x4v3", "--download=true") == 0


def test_a_full_disk_is_said(server, tiny_manifest, tmp_path, capsys, monkeypatch):
    def full(path, write):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sr_weights, "atomic_write", full)
    assert prepare(tiny_manifest, tmp_path, "--sr_weights=general-x4v3", "--download=true") == 2
    assert "cannot be written (No space left on device)" in capsys.readouterr().err


def test_only_releases_can_be_fetched(server, tiny_manifest, tmp_path, capsys):
    assert prepare(tiny_manifest, tmp_path, "--sr_weights=mine.pth", "--download=true") == 2
    assert "'mine.pth' is no official release" in capsys.readouterr().err
    assert prepare(tiny_manifest, tmp_path, "--download=true") == 2
    assert "none are given" in capsys.readouterr().err


def test_a_missing_path_says_what_there_is(tmp_path):
    with pytest.raises(UpscalerError, match=r"official file: --sr_weights x4plus --download true"):
        locate(str(tmp_path / "RealESRGAN_x4plus.pth"))
    with pytest.raises(UpscalerError, match=r"general-x4v3, .*drawn-specimens-x4"):
        locate("general-v4x3")
    with pytest.raises(UpscalerError, match="is a folder"):
        locate(str(tmp_path))


def test_releases_are_what_upstreams_script_names():
    files = {name: (release.file, release.scale) for name, release in RELEASES.items()}
    assert files == {
        "general-x4v3": ("realesr-general-x4v3.pth", 4),
        "general-wdn-x4v3": ("realesr-general-wdn-x4v3.pth", 4),
        "animevideov3": ("realesr-animevideov3.pth", 4),
        "x4plus": ("RealESRGAN_x4plus.pth", 4),
        "x4plus-anime": ("RealESRGAN_x4plus_anime_6B.pth", 4),
        "x2plus": ("RealESRGAN_x2plus.pth", 2),
    }
    assert all(len(release.sha256) == 64 for release in RELEASES.values())
    assert not set(PACKAGED) & set(RELEASES)


def test_the_counterpart_is_named_as_upstream_does():
    assert weak_denoising("general-x4v3") == "general-wdn-x4v3"
    assert weak_denoising("/a/general-x4v3/realesr-general-x4v3.pth") == "/a/general-x4v3/realesr-general-wdn-x4v3.pth"
    assert weak_denoising("general-x4v3/mine.pth") is None


def test_a_blend_is_the_upstream_interpolation(tmp_path):
    strong, weak = save_network(tmp_path / "realesr-general-x4v3.pth", 0), save_network(tmp_path / "weak.pth", 1)
    a, b = (torch.load(path, weights_only=True)["params"] for path in (strong, weak))
    expected = {key: 0.3 * a[key] + (1 - 0.3) * b[key] for key in a}
    found = _blended(_load(strong), _load(weak), 0.3)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    torch.save({"params": expected}, tmp_path / "blended.pth")
    crops = [
        build_upscaler("spandrel", strong, weak=weak, strength=0.3)(CROP),
        CropSpec(sr_weights=str(strong), sr_denoise=0.3, sr_wdn_weights=str(weak)).build_upscaler()(CROP),
        build_upscaler("spandrel", tmp_path / "blended.pth")(CROP),
    ]
    assert np.array_equal(crops[0], crops[1])
    assert np.array_equal(crops[0], crops[2])
    assert not np.array_equal(crops[0], build_upscaler("spandrel", strong)(CROP))


def test_a_blend_is_part_of_the_identity(tmp_path):
    strong = save_network(tmp_path / "realesr-general-x4v3.pth", 0)
    weak = save_network(tmp_path / "realesr-general-wdn-x4v3.pth", 1)
    plain = CropSpec(sr_weights=str(strong)).identity()
    assert "blend" not in plain["upscaler"]
    assert CropSpec(sr_weights=str(strong), sr_denoise=1.0).identity() == plain
    assert CropSpec(sr_weights=str(strong), sr_denoise=1.0).resolved().sr_denoise is None
    blended = CropSpec(sr_weights=str(strong), sr_denoise=0.25).identity()["upscaler"]
    assert blended["weights_sha256"] == sha256_of(strong)
    assert blended["blend"] == {"strength": 0.25, "weights_sha256": sha256_of(weak)}
    weak.unlink()
    with pytest.raises(UpscalerError, match=r"realesr-general-wdn-x4v3\.pth"):
        CropSpec(sr_weights=str(strong), sr_denoise=0.25).resolved()
    assert CropSpec(sr_weights=str(strong), sr_denoise=1.0).resolved()


def test_keys_of_before_stay():
    upscaler = {"name": "bicubic", "architecture": "bicubic", "scale": 4, "weights_sha256": None, "precision": "fp32"}
    assert CropSpec(upscaler="bicubic").identity() == {
        "schema": 1,
        "roi_margin": 0.0,
        "sr_max_side": 512,
        "store_size": 256,
        "resize": "stretch",
        "interpolation": "area down, cubic up",
        "upscaler": upscaler | {"pixel_budget": 0, "tile_pad": 0},
    }


def test_blends_that_cannot_be(tmp_path):
    strong = save_network(tmp_path / "mine.pth")
    with pytest.raises(UpscalerError, match="no known counterpart"):
        CropSpec(sr_weights=str(strong), sr_denoise=0.5).resolved()
    other = save_network(tmp_path / "other.pth", features=12)
    with pytest.raises(UpscalerError, match="not of the same network"):
        build_upscaler("spandrel", strong, weak=other, strength=0.5)


def test_the_packaged_network_is_found_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = CropSpec.from_dict({"sr_weights": "drawn-specimens-x4", "upscaler": "auto"})
    identity = spec.build_upscaler().identity
    assert identity.name in ("spandrel", "ncnn") and (identity.architecture, identity.scale) == ("Compact", 4)
    assert locate("drawn-specimens-x4").stat().st_size < 200_000
    with pytest.warns(UserWarning, match="no Real-ESRGAN weights"):
        assert CropSpec().resolved().upscaler == "bicubic"


@pytest.mark.realdata
def test_a_blend_of_the_real_weights_agrees_with_the_reference(shared_dir):
    with sr_networks._reference_importable():
        realesrgan = pytest.importorskip("realesrgan")
        from realesrgan.archs.srvgg_arch import SRVGGNetCompact
    strong = shared_dir / "weights" / "realesr-general-x4v3-fp16src.pth"
    reference = realesrgan.RealESRGANer(
        4,
        [str(strong), str(strong).replace("general-x4v3", "general-wdn-x4v3")],
        dni_weight=[0.35, 1 - 0.35],
        model=SRVGGNetCompact(3, 3, num_feat=64, num_conv=32, upscale=4),
        pre_pad=0,
        device=torch.device("cpu"),
    )
    expected = reference.enhance(np.ascontiguousarray(CROP[..., ::-1]))[0][..., ::-1].astype(int)
    found = CropSpec(sr_weights=str(strong), sr_denoise=0.35).build_upscaler()(CROP)
    assert np.abs(found - expected).max() <= 1
    plain = CropSpec(sr_weights=str(strong)).build_upscaler()(CROP)
    assert np.abs(plain - expected).max() > 5
