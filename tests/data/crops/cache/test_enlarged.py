"""One pass of the network serves every stored size."""

import numpy as np
import pytest
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY
from helpers.paths import CONFIGS

from kd_convnext.cli import main
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.make import make_crop
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.network import NetworkUpscaler
from kd_convnext.data.manifest.manifest import read_manifest

NETWORK = {"upscaler": "spandrel", "sr_weights": "drawn-specimens-x4"}


@pytest.fixture
def passes(monkeypatch):
    """Counts the passes of networks."""
    counted, whole = [], NetworkUpscaler._whole

    def counting(self, crop):
        counted.append(crop.shape)
        return whole(self, crop)

    monkeypatch.setattr(NetworkUpscaler, "_whole", counting)
    return counted


def prepare(manifest, root, **options):
    words = [f"--{name}={value}" for name, value in NETWORK.items()]
    words += [f"--crops.{name}={value}" for name, value in options.items()]
    return main(["prepare", f"--manifest={manifest}", f"--cache_dir={root}", *words])


@pytest.mark.parametrize(("size", "resize"), [(128, "stretch"), (40, "pad"), (256, "pad"), (None, "stretch")])
def test_another_size_needs_no_pass_and_has_the_same_pixels(tiny_manifest, tmp_path, passes, size, resize):
    prepare(tiny_manifest, tmp_path, store_size=256)
    assert len(passes) == 60
    manifest = read_manifest(str(tiny_manifest))
    spec = CropSpec(store_size=size, resize=resize, **NETWORK)
    prepared = CropCache(tmp_path, spec).fill(manifest)
    assert prepared.summary.made == 60 * (size is not None)  # the enlarged crops themselves are there
    assert len(passes) == 60
    for row in (0, 17, 59):
        expected = make_crop(manifest.image_path(row), manifest.box(row), spec, spec.build_upscaler())
        assert np.array_equal(prepared.load(row), expected)


def test_a_fit_of_another_size_needs_no_pass(tiny_manifest, tmp_path, passes, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    prepare(tiny_manifest, tmp_path / "cache", store_size=256)
    del passes[:]
    data = {"manifest": tiny_manifest, "cache_dir": tmp_path / "cache", "crops.store_size": 40} | NETWORK
    words = [f"--data.{name}={value}" for name, value in data.items()]
    config = CONFIGS / "teacher_swin_tiny.yaml"
    assert main(["fit", f"--config={config}", *TINY, *words, *SMALL_SWIN, *OFFLINE]) == 0
    assert not passes
    said = capsys.readouterr()
    assert "crops to make" in said.out + said.err
    assert "without the network" in said.out + said.err


def test_a_damaged_enlarged_crop_is_made_again(tiny_manifest, tmp_path, passes):
    prepare(tiny_manifest, tmp_path, store_size=64)
    spec = CropSpec(store_size=32, **NETWORK)
    cache = CropCache(tmp_path, spec)
    victim = sorted(cache.enlarged.folder.glob("??/*.png"))[0]
    victim.write_bytes(victim.read_bytes()[:-40])
    del passes[:]
    manifest = read_manifest(str(tiny_manifest))
    prepared = cache.fill(manifest)
    assert len(passes) == 1
    assert victim.stat().st_size > 40
    assert len(prepared.rows) == 60


def test_entries_of_earlier_versions_stay(tiny_manifest, tmp_path, passes):
    prepare(tiny_manifest, tmp_path, store_size=64)
    cache = CropCache(tmp_path, CropSpec(store_size=64, **NETWORK))
    for path in cache.enlarged.folder.glob("??/*.png"):  # an earlier version kept none
        path.unlink()
    del passes[:]
    assert cache.fill(read_manifest(str(tiny_manifest))).summary.found == 60
    assert not passes


def test_pruning_and_dry_runs_know_the_enlarged_crops(tiny_manifest, tmp_path, passes, capsys):
    head, *rows = tiny_manifest.read_text().splitlines()
    rows = [f"{tiny_manifest.parent}/{row}" for row in rows]
    some, fewer = tmp_path / "some.csv", tmp_path / "fewer.csv"
    some.write_text("\n".join([head, *rows[::10]]) + "\n")
    fewer.write_text("\n".join([head, *rows[::20]]) + "\n")
    cache, network = tmp_path / "cache", [f"--{name}={value}" for name, value in NETWORK.items()]
    words = [*network, f"--cache_dir={cache}", "--crops.store_size=64"]
    assert main(["prepare", str(some), *words]) == 0
    assert "--data.crops.store_size 64" in capsys.readouterr().out.rpartition("Next:")[2]
    del passes[:]
    assert main(["prepare", str(fewer), *words[:-1], "--crops.store_size=40", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "3 to make" in said and "about 100% of them from enlarged crops that are kept" in said
    enlarged = CropCache(cache, CropSpec(store_size=64, **NETWORK)).enlarged.folder
    assert main(["prepare", str(fewer), *words, "--prune"]) == 0
    assert "prune: 6 files" in capsys.readouterr().out and len(list(enlarged.glob("??/*.png"))) == 6
    assert main(["prepare", str(fewer), *words, "--prune", "--yes"]) == 0
    assert len(list(enlarged.glob("??/*.png"))) == 3


def test_bicubic_keeps_nothing_more(tiny_manifest, tmp_path):
    main(["prepare", f"--manifest={tiny_manifest}", f"--cache_dir={tmp_path}", "--upscaler=bicubic"])
    assert len([path for path in tmp_path.iterdir() if path.is_dir()]) == 1
