"""The shipped recipe of two cores, as it is: teacher, stored views, student, test, on a few real photographs."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.manifests import slice_of
from helpers.paths import CONFIGS

from kd_convnext.cli import main

pytestmark = [pytest.mark.realdata, pytest.mark.slow]

VIEWS = 2
WIDTH = 5 * 384
"""Class tokens of four blocks of a ViT-S, and its mean patch token."""


def stored_records(cache):
    """Counts the stored outputs of each kind, by the number of their values."""
    found = {}
    for path in cache.glob("teacher/*/*.npy"):
        records = np.load(path)
        width = records.dtype["embedding"].shape[0]
        found[width] = found.get(width, 0) + len(records)
    return found


def test_the_shipped_recipe_goes_from_photographs_to_a_tested_student(shared_dir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").symlink_to(shared_dir / "weights")
    slice_of(shared_dir, "ham_paper5", 8, tmp_path / "photographs.csv")
    others = slice_of(shared_dir, "ham_pretrain", 2, tmp_path / "others.csv")
    words = ["fit", "--config", "configs/small_cpu/best.yaml", "--data.manifest=photographs.csv"]
    words += ["--data.unlabelled=others.csv", "--data.upscaler=bicubic", "--data.cache_dir=cache"]
    words += [f"--data.loader.views={VIEWS}", "--trainer.max_epochs=2", "--trainer.accelerator=cpu"]
    words += ["--trainer.enable_progress_bar=false", "--trainer.default_root_dir=run"]
    assert main(words) == 0
    out = capsys.readouterr().out
    assert out.index("The teacher first") < out.index("The teacher answers")
    run, shipped = tmp_path / "run", yaml.safe_load((CONFIGS / "small_cpu" / "best.yaml").read_text())
    teacher = torch.load(run / "teacher" / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    assert teacher["finetune"] == "linear" and teacher["backbone"]["token_blocks"] == 4
    # The teacher looked four times at every crop, and once at each view of a labelled one.
    trained = int((pd.read_csv(run / "split.csv")["split"] == "train").sum())
    assert stored_records(tmp_path / "cache") == {4 * WIDTH: trained + len(others), WIDTH: VIEWS * trained}
    curve = pd.read_csv(run / "metrics.csv")
    terms = shipped["model"]["init_args"]["objective"]["init_args"]["terms"]
    losses = curve[[f"train/loss_{name}" for name in terms]].dropna()
    assert len(losses) == 2 and np.isfinite(losses).all(axis=None)
    kept = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)["hyper_parameters"]
    assert {name: kept["student"][name] for name in shipped["model"]["init_args"]["student"]} == (
        shipped["model"]["init_args"]["student"]
    )
    assert main(["test", "--config=run/config.yaml", "--ckpt_path=run/checkpoints/best.ckpt"]) == 0
    assert 0 <= json.loads((run / "metrics.json").read_text())["test/f1_macro"] <= 1
    judged = pd.read_csv(run / "split.csv").query("split == 'test'")["image"]
    assert sorted(pd.read_csv(run / "predictions.csv")["image"]) == sorted(judged)
