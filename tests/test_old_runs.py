"""Runs trained before the modules moved to their rooms go on: loaded, tested, resumed, classified, exported."""

import json
import shutil

import pandas as pd
import pytest
import torch
from helpers.paths import REPOSITORY

from kd_convnext import DistillModule, TeacherModule
from kd_convnext.cli import main

OLD = REPOSITORY / "tests" / "fixtures" / "run_before_rooms"
CALIBRATED = OLD.with_name("calibration_before_detail")
RUNS = ("teacher", "student")


@pytest.fixture
def old(tmp_path, monkeypatch):
    """A copy to work in, beside its photographs."""
    folder = shutil.copytree(OLD, tmp_path / "old")
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize("name, kind", [("teacher", TeacherModule), ("student", DistillModule)])
def test_loads(name, kind):
    path = OLD / name / "checkpoints" / "best.ckpt"
    module = kind.load_from_checkpoint(path, map_location="cpu")
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert all(
        torch.equal(value, saved[key])
        for key, value in module.classifier.state_dict(prefix=f"{module.deployable}.").items()
    )
    assert set(module.class_names) == {"Grade 1", "Grade 2", "AIS"}
    assert len(module.card.seen_groups) > 0


@pytest.mark.parametrize("name", RUNS)
def test_is_tested_with_the_same_answers(old, name):
    before = pd.read_csv(OLD / name / "predictions.csv")
    metrics = json.loads((OLD / name / "metrics.json").read_text())
    for file in ("predictions.csv", "metrics.json"):
        (old / name / file).unlink()
    words = ["--config", f"{name}/config.yaml", f"--ckpt_path={name}/checkpoints/best.ckpt"]
    assert main(["test", *words]) == 0
    after = pd.read_csv(old / name / "predictions.csv")
    pd.testing.assert_frame_equal(after[before.columns], before, atol=1e-5)
    now = json.loads((old / name / "metrics.json").read_text())
    assert {key: now[key] for key in metrics if key in now} == pytest.approx(metrics, abs=1e-5, nan_ok=True)


@pytest.mark.parametrize("name", RUNS)
def test_resumes(old, name):
    last = old / name / "checkpoints" / "last.ckpt"
    steps = torch.load(last, weights_only=True)["global_step"]
    words = ["--config", f"{name}/config.yaml", f"--ckpt_path={name}/checkpoints/last.ckpt"]
    assert main(["fit", *words, "--trainer.max_epochs=2"]) == 0
    assert torch.load(last, weights_only=True)["global_step"] == 2 * steps


@pytest.mark.parametrize("name", RUNS)
def test_classifies_and_exports(old, name):
    checkpoint = f"--ckpt_path={name}/checkpoints/best.ckpt"
    assert main(["classify", "photographs/0_0.jpg", checkpoint, "--out", "answers"]) == 0
    assert main(["export", checkpoint, "--format", "torch", "--out", "exported"]) == 0
    assert list((old / "exported").glob("*.pt2"))


def test_a_calibration_without_the_distance_of_detail_decides_as_it_did(old):
    for name in ("calibration.json", "calibration.safetensors"):
        shutil.copy(CALIBRATED / name, old / "student" / "checkpoints")
    checkpoint = "--ckpt_path=student/checkpoints/best.ckpt"
    assert main(["classify", "photographs", checkpoint, "--out", "answers"]) == 0
    before, after = (pd.read_csv(folder / "answers.csv") for folder in (CALIBRATED, old / "answers"))
    for name in ("abstain", "reasons", "prediction_set"):
        pd.testing.assert_series_equal(after[name], before[name])
    assert after["gate_score"].tolist() == pytest.approx(before["gate_score"].tolist(), rel=1e-6)
    assert 0 < (before["gate_score"] > 1).sum() < len(before)
    assert main(["export", checkpoint, "--manifest", "photographs", "--out", "exported"]) == 0
    compared = json.loads((old / "exported" / "model.json").read_text())["compared"]
    assert compared["decisions"] == 1 and compared["gate_difference"] < 1e-4
