"""What the figures of a fit say of themselves."""

from types import SimpleNamespace

import numpy as np
from helpers import tiny
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY
from matplotlib.figure import Figure
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.evaluation.direction import Choice
from kd_convnext.training import previews


def test_curves_say_whose_they_are(tiny_manifest, tiny_cache, tmp_path, monkeypatch):
    captions = []
    monkeypatch.setattr(previews, "training_curves", lambda frame, *told: captions.append(told) or Figure())
    data = ["--data.manifest", str(tiny_manifest), "--data.cache_dir", tiny_cache]
    words = ["fit", "--model", "TeacherModule", *SMALL_SWIN, *OFFLINE, *TINY, *data, "--checkpoint.monitor=val/loss"]
    assert main([*words, "--trainer.default_root_dir", str(tmp_path / "run")]) == 0
    ((caption, choice),) = captions
    assert choice == Choice("val/loss", "min")
    assert caption.startswith("Training part (30 photographs of 15 lesions) and validation part (")
    assert "swin_tiny_patch4_window7_224, altered (" in caption and caption.endswith(" parameters.")


def test_crops_without_labels_are_called_so(tiny_manifest, tiny_cache, tmp_path, monkeypatch):
    for number in range(6):
        Image.fromarray(np.random.default_rng(number).integers(0, 256, (40, 40, 3), np.uint8)).save(
            tmp_path / f"{number}.png"
        )
    source = tiny.data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path))
    source.setup("fit")
    drawn = []
    monkeypatch.setattr(previews, "crop_grid", lambda images, titles, caption: drawn.append((titles, caption)))
    monkeypatch.setattr(previews, "show_figure", lambda *_, **__: None)
    fit = SimpleNamespace(is_global_zero=True, datamodule=source)
    previews.AugmentationPreview(pictures=36).on_fit_start(fit, None)
    ((titles, caption),) = drawn
    expected = [source.class_names[label] for label in source.manifest.labels[source.split.rows("train")]]
    assert titles == expected + ["no label"] * 6
    assert caption.startswith("36 of 30 training crops and 6 without labels as the network sees them")
