"""The packaged network is worth its place: better than bicubic on drawn specimens that it has not seen."""

import importlib.util
import re

import cv2
import numpy as np
import pytest
from helpers import tiny
from helpers.paths import REPOSITORY

from kd_convnext import TeacherModule
from kd_convnext.cli import main
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.crops.upscaling.build import build_upscaler

FRESH_SEED = 77
"""Neither the training's nor that of the script's own measurement."""


@pytest.fixture(scope="module")
def script():
    found = importlib.util.spec_from_file_location("train_tiny_sr", REPOSITORY / "scripts" / "train_tiny_sr.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_at_least_one_decibel_better_than_bicubic_on_fresh_specimens(script):
    assert FRESH_SEED not in (script.TRAINING_SEED, script.HELD_OUT_SEED)
    network = CropSpec(sr_weights="drawn-specimens-x4").build_upscaler()
    bicubic = build_upscaler("bicubic", None)
    rng, gains = np.random.default_rng(FRESH_SEED), []
    for truth in script.draw(FRESH_SEED, 10):
        small = script.degrade(rng, truth)
        assert small.shape == (truth.shape[0] // 4, truth.shape[1] // 4, 3)
        gains.append(script.psnr(truth, network(small)) - script.psnr(truth, bicubic(small)))
    assert np.mean(gains) >= 1
    assert min(gains) > 0


def test_degraded_pictures_are_drawn_anew_from_their_seed(script):
    (truth,) = script.draw(FRESH_SEED, 1, 1.0)
    assert truth.shape == (240, 320, 3)
    first, again, other = (script.degrade(np.random.default_rng(seed), truth) for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    reduced = cv2.resize(truth, (80, 60), interpolation=cv2.INTER_AREA).astype(int)
    assert 1 < np.abs(first - reduced).mean() < 30


def test_the_script_makes_usable_weights(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "BATCH", 2)
    words = ["--lesions", "2", "--steps", "2", "--held_out", "1", "--out", str(tmp_path / "new.safetensors")]
    monkeypatch.setattr("sys.argv", ["train_tiny_sr.py", *words])
    script.main()
    assert "the demo's size, degraded" in capsys.readouterr().out
    shipped, made = (
        build_upscaler("spandrel", weights).identity for weights in ("drawn-specimens-x4", tmp_path / "new.safetensors")
    )
    assert (shipped.architecture, shipped.scale, shipped.tile_pad) == (made.architecture, made.scale, made.tile_pad)


def test_prepare_takes_it_by_name_and_never_by_itself(tiny_manifest, tmp_path, capsys):
    words = ["prepare", f"--manifest={tiny_manifest}", f"--cache_dir={tmp_path}", "--crops.store_size=24"]
    assert main([*words, "--sr_weights=drawn-specimens-x4", "--download=true"]) == 0
    assert re.search(r"upscaler (spandrel|ncnn) \(Compact, x4\)", capsys.readouterr().out)
    with pytest.warns(UserWarning, match="no Real-ESRGAN weights"):
        assert main(words) == 0
    assert "upscaler bicubic" in capsys.readouterr().out


def test_a_checkpoint_made_with_it_crops_alike_anywhere(tiny_manifest, tmp_path, monkeypatch):
    source = tiny.data(tiny_manifest, str(tmp_path / "cache"), upscaler="auto", sr_weights="drawn-specimens-x4")
    trainer = tiny.trainer(tmp_path)
    trainer.fit(tiny.teacher(source), datamodule=source)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KD_CONVNEXT_CACHE", str(tmp_path / "another home"))
    card = TeacherModule.load_from_checkpoint(tmp_path / "a.ckpt").card
    assert card.crop_identity["upscaler"]["name"] in ("spandrel", "ncnn")
    assert CropSpec.from_dict(dict(card.crop)).identity() == dict(card.crop_identity)
