"""A user's own loss term is trained by its class path, logged by its name, and comes back from the checkpoint."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.command_line import TINY
from helpers.own_terms import LogitDistance
from helpers.tiny import CONVNEXT_SPEC

from kd_convnext import DistillModule
from kd_convnext.cli import main
from kd_convnext.losses import Outputs


def test_its_value_is_the_formula():
    student, teacher = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(0))
    found = LogitDistance(centred=True)(Outputs(student), Outputs(teacher), torch.zeros(4, dtype=torch.int64))
    difference = (student - teacher).numpy()
    assert float(found) == pytest.approx(float(np.var(difference, axis=1).mean()), rel=1e-5)


def test_it_is_fitted_by_its_class_path(tiny_manifest, tiny_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    terms = {
        "labels": {"class_path": "kd_convnext.losses.CrossEntropy"},
        "distance": {"class_path": "helpers.own_terms.LogitDistance", "init_args": {"weight": 0.5, "centred": False}},
    }
    model = {
        "class_path": "kd_convnext.DistillModule",
        "init_args": {
            "teacher_ckpt": str(tiny_run),
            "student": {"name": CONVNEXT_SPEC.name, "image_size": 32, "args": CONVNEXT_SPEC.args},
            "objective": {"class_path": "kd_convnext.losses.Objective", "init_args": {"terms": terms}},
        },
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"model": model}))
    words = [f"--data.manifest={tiny_manifest}", "--data.cache_dir=cache", *TINY, "--name=own"]
    assert main(["fit", "--trust=helpers", "--config", "own.yaml", *words]) == 0
    (run,) = (tmp_path / "runs" / "own").iterdir()
    curve = pd.read_csv(run / "metrics.csv")["train/loss_distance"].dropna()
    assert len(curve) == 1 and curve.iloc[0] > 0
    monkeypatch.setenv("KD_CONVNEXT_TRUST", "helpers")  # as --trust does
    module = DistillModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt", map_location="cpu")
    (own,) = [term for term in module.modules() if isinstance(term, LogitDistance)]
    assert own.weight == 0.5 and own.centred is False
