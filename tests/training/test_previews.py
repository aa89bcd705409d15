"""What the figures of a fit say of themselves."""

from helpers.command_line import OFFLINE, SMALL_SWIN, TINY
from matplotlib.figure import Figure

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
