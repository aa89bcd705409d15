"""What was kept of a photograph, a file or a clock that has changed since: it is made anew, never shown for the new."""

import json
import os
import re
import shutil

import pandas as pd
import pytest
import yaml
from helpers import tiny
from helpers.command_line import TINY, convnext
from helpers.inference import copy_run
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.experiment.plan.cells import Cell
from kd_convnext.experiment.running import cell as running
from kd_convnext.page.pictures import Thumbnails
from kd_convnext.runs.folder import RunFolder
from kd_convnext.training.changed import changes
from kd_convnext.training.environment import hashed_crops

FIT = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone")]


def trained_on(run):
    """Names a photograph of the first class in a run's training part."""
    rows = pd.read_csv(run / "split.csv")
    return rows[(rows["split"] == "train") & (rows["label"] == "Grade 1")]["image"].iloc[0]


def test_training_cases_of_another_photograph_under_the_name(tiny_run, tiny_manifest, tmp_path, capsys):
    photos = shutil.copytree(tiny_manifest.parent, tmp_path / "photos")
    run = copy_run(tiny_run, tmp_path / "run")
    config = {"data": {"manifest": str(photos / tiny_manifest.name), "cache_dir": str(tmp_path / "cache")}}
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    trained = photos / trained_on(tmp_path / "run")
    words = ["explain", str(trained), "--ckpt_path", str(run), "--neighbours", "1", "--out", str(tmp_path / "out")]
    for first, sees in ((True, True), (True, False), (False, True)):
        if not first:
            Image.effect_noise(Image.open(trained).size, 60).convert("RGB").save(trained)
        assert main([*words, "--overwrite", "true"]) == 0
        assert ("The network sees its" in capsys.readouterr().out) == sees


def test_a_fit_that_goes_on_with_other_photographs_or_boxes_says_so(tiny_manifest, tmp_path, capsys):
    manifest = shutil.copytree(tiny_manifest.parent, tmp_path / "photos") / tiny_manifest.name
    fit = [*FIT, f"--data.manifest={manifest}", f"--data.cache_dir={tmp_path / 'cache'}"]
    assert main([*fit, f"--trainer.default_root_dir={tmp_path / 'run'}"]) == 0
    last = [f"--ckpt_path={tmp_path / 'run' / 'checkpoints' / 'last.ckpt'}", "--trainer.max_epochs"]
    capsys.readouterr()
    assert main([*fit, *last, "2"]) == 0
    assert "since the fit began" not in capsys.readouterr().out
    trained = trained_on(tmp_path / "run")
    Image.effect_noise((40, 36), 60).convert("RGB").save(manifest.with_name(trained))
    assert main([*fit, *last, "3"]) == 0
    assert "Warning: photographs were replaced since the fit began" in capsys.readouterr().out
    box = r"\g<1>3,2,30,30"
    manifest.write_text(re.sub(rf"({re.escape(trained)},.*?,L.*?,)2,1,36,34", box, manifest.read_text()))
    assert main([*fit, *last, "4"]) == 0
    assert "Warning: 1 row of the photographs' list changed since the fit began" in capsys.readouterr().out


def test_a_fit_that_goes_on_with_other_photographs_without_labels_says_so(tiny_manifest, tiny_cache, tmp_path):
    run, others = RunFolder(tmp_path), tmp_path / "others"
    others.mkdir()

    def told(**options):
        """Compares the record of before, if there is one, with that of now, and keeps that."""
        source = tiny.data(tiny_manifest, tiny_cache, **options)
        source.setup("fit")
        now = json.dumps(hashed_crops(source)).encode()
        found = changes(run, {run.split: b"", run.environment: now})
        run.environment.write_bytes(now)
        return found

    def draw(name):
        Image.effect_noise((40, 36), 60).convert("RGB").save(others / name)

    draw("a.png")
    draw("b.png")
    assert told(unlabelled=str(others)) == told(unlabelled=str(others)) == []
    changed = ["photographs without labels were added, removed or replaced since the fit began"]
    draw("b.png")
    assert told(unlabelled=str(others)) == changed
    (others / "b.png").unlink()
    assert told(unlabelled=str(others)) == changed
    assert told() == changed and told() == []
    run.environment.write_text("{}")  # of an earlier version
    assert told(unlabelled=str(others)) == []


def test_a_thumbnail_of_another_photograph_of_the_same_size_and_time(tmp_path):
    photo, thumbnails = tmp_path / "photo.bmp", Thumbnails(tmp_path / "cache")
    Image.new("RGB", (60, 40), "red").save(photo)
    before, was = photo.stat(), thumbnails.of(photo)
    Image.new("RGB", (60, 40), "blue").save(photo)
    os.utime(photo, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert photo.stat().st_size == before.st_size and thumbnails.of(photo) != was


@pytest.mark.parametrize("hours", [-5, 5])
def test_a_clock_that_is_set_while_a_cell_runs(hours, tmp_path, monkeypatch):
    now = running.time.time

    def fit(words, log, place):
        monkeypatch.setattr(running.time, "time", lambda: now() + hours * 3600)
        return 0

    monkeypatch.setattr(running, "_in_process", fit)
    cell = Cell("swin", "Swin", "ablation", "default", 0, 0, {}, "hash", None, "test")
    assert 0 <= running.run_cell(cell, running.Workplace(tmp_path)).seconds < 3600
