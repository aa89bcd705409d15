"""How faithful enlarged crops are: measured, kept beside the crop, said by prepare, and mended by choice."""

import math

import cv2
import numpy as np
import pytest

from kd_convnext.cli import main
from kd_convnext.data.crops.cache.cache import CropCache
from kd_convnext.data.crops.cache.entries import entry_fidelity, entry_size, read_entry, write_entry
from kd_convnext.data.crops.fidelity import Fidelity, consistent, fidelity
from kd_convnext.data.crops.make import make_crop
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.errors import ConfigError

NETWORK = {"upscaler": "spandrel", "sr_weights": "drawn-specimens-x4"}


def reduced(pixels, scale=4):
    height, width = pixels.shape[0] // scale, pixels.shape[1] // scale
    return pixels.reshape(height, scale, width, scale, 3).astype(float).mean(axis=(1, 3))


@pytest.fixture
def crop():
    return np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)


def test_a_faithful_enlargement_differs_nowhere(crop):
    found = fidelity(crop, crop.repeat(4, axis=0).repeat(4, axis=1))
    assert found == Fidelity(math.inf, 0.0)


def test_what_was_painted_over_is_counted():
    crop = np.full((8, 8, 3), 100, np.uint8)
    enlarged = crop.repeat(4, axis=0).repeat(4, axis=1)
    enlarged[:16, :16] += 20  # a quarter of the crop
    found = fidelity(crop, enlarged)
    assert found.psnr == pytest.approx(10 * math.log10(255**2 / (20**2 / 4)))
    assert found.changed == 0.25
    # Texture below the crop's resolution changes nothing at it: the figure cannot see what is invented there.
    enlarged[:16, :16] -= 20
    enlarged[::2, ::2] += 30
    enlarged[1::2, 1::2] -= 30
    assert fidelity(crop, enlarged).psnr == math.inf


@pytest.mark.parametrize("seed", range(3))
def test_a_corrected_enlargement_is_the_crop_to_one_level(seed):
    rng = np.random.default_rng(seed)
    crop = rng.integers(0, 256, (9, 14, 3), dtype=np.uint8)
    smooth = cv2.resize(crop, (56, 36), interpolation=cv2.INTER_CUBIC)
    painted = np.clip(smooth + rng.normal(0, 30, smooth.shape), 0, 255).astype(np.uint8)
    painted[8:20, 10:30] = 255
    found = consistent(crop, painted)
    assert np.abs(reduced(painted) - crop).max() > 30
    assert np.abs(reduced(found) - crop).max() <= 1
    assert found.dtype == np.uint8 and fidelity(crop, found).changed == 0


def test_the_figure_lies_in_the_entry_and_leaves_it_whole(tmp_path, crop):
    path = tmp_path / f"{'ab' * 32}.png"
    size = write_entry(path, crop, Fidelity(31.25, 0.125))
    assert entry_fidelity(path) == Fidelity(31.25, 0.125)
    assert entry_size(path, None) == size and np.array_equal(read_entry(path, None), crop)
    write_entry(path, crop)
    assert entry_fidelity(path) is None and entry_fidelity(tmp_path / "missing.png") is None
    assert np.array_equal(read_entry(path, None), crop)


def test_prepare_says_how_faithful_its_crops_are(few, tmp_path, capsys):
    words = ["prepare", str(few), f"--cache_dir={tmp_path / 'cache'}", "--crops.store_size=48", "--upscaler=spandrel"]
    words += ["--sr_weights=drawn-specimens-x4"]
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "fidelity of 3 enlarged crops, reduced again: median" in said
    spec, manifest = CropSpec(store_size=48, **NETWORK), read_manifest(str(few))
    prepared = CropCache(tmp_path / "cache", spec).fill(manifest)
    plain = prepared.fidelities()
    expected = make_crop(
        manifest.image_path(1), manifest.box(1), CropSpec(store_size=None, **NETWORK), spec.build_upscaler()
    )
    own = cv2.imread(str(manifest.image_path(1)))[1:35, 2:38, ::-1]
    assert plain[1] == fidelity(own, expected) and min(kept.psnr for kept in plain.values()) < 45
    # Another size has the same figures, without another pass; noise is what a network smooths away.
    other = CropCache(tmp_path / "cache", CropSpec(store_size=20, **NETWORK)).fill(manifest)
    assert other.fidelities() == plain
    assert main([*words, "--crops.sr_consistent=true"]) == 0
    true = CropCache(tmp_path / "cache", CropSpec(store_size=48, sr_consistent=True, **NETWORK)).fill(manifest)
    assert true.summary.made == 0 and true.folder != prepared.folder
    assert min(kept.psnr for kept in true.fidelities().values()) > 48
    assert "warning" not in capsys.readouterr().out.rpartition("fidelity of")[2]
    assert not np.array_equal(true.load(0), prepared.load(0))


def test_crops_without_a_network_have_no_figure(few, tmp_path, capsys):
    assert main(["prepare", str(few), f"--cache_dir={tmp_path / 'cache'}", "--upscaler=bicubic"]) == 0
    assert "fidelity" not in capsys.readouterr().out


def test_crops_in_pieces_cannot_be_corrected():
    with pytest.raises(ConfigError, match="sr_max_side 512"):
        CropSpec(sr_consistent=True, sr_max_side=None)
    assert "consistent" not in CropSpec(upscaler="bicubic").identity()
