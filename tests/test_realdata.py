"""Real photographs with the real Real-ESRGAN weights: prepare, teach, distil, answer for every ROI."""

import pandas as pd
import pytest
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY, convnext
from helpers.manifests import slice_of
from helpers.paths import CONFIGS

from kd_convnext.cli import main

pytestmark = pytest.mark.realdata


@pytest.mark.parametrize(
    ("name", "rows", "weights"),
    [
        pytest.param("ham_paper5", 8, "realesr-general-x4v3-fp16src.pth", marks=pytest.mark.slow),
        ("bccd", 4, "realesr-animevideov3.pth"),
    ],
)
def test_whole_path(shared_dir, tmp_path, monkeypatch, capsys, name, rows, weights):
    monkeypatch.chdir(tmp_path)
    table = slice_of(shared_dir, name, rows, tmp_path / "m.csv")
    crops = ["--cache_dir=cache", f"--sr_weights={shared_dir / 'weights' / weights}", "--crops.sr_max_side=48"]
    crops += ["--crops.store_size=40", "--upscaler=spandrel"]
    assert main(["prepare", "--manifest=m.csv", *crops]) == 0
    assert f"{len(table)} made" in capsys.readouterr().out
    tiny = [word for word in TINY if "upscaler" not in word]
    data = ["--data.manifest=m.csv", *tiny, *(word.replace("--", "--data.") for word in crops)]
    swin = ["--config", str(CONFIGS / "teacher_swin_tiny.yaml"), *SMALL_SWIN, *OFFLINE]
    assert main(["fit", *swin, *data, "--trainer.default_root_dir=teacher"]) == 0
    student = ["--config", str(CONFIGS / "kd_convnext_tiny.yaml"), *convnext("student")]
    student += ["--model.student.pretrained=false", "--model.teacher_ckpt=teacher/checkpoints/best.ckpt"]
    assert main(["fit", *student, *data, "--trainer.default_root_dir=student"]) == 0
    judged = ["--config=student/config.yaml", "--ckpt_path=student/checkpoints/best.ckpt"]
    assert main(["test", *judged]) == 0
    assert main(["predict", *judged]) == 0
    answers = pd.read_csv(tmp_path / "student" / "predictions_all.csv")
    assert len(answers) == len(table)
    assert answers["image"].tolist() == table["image"].tolist()
    assert set(answers["prediction"]) <= set(table["label"])
