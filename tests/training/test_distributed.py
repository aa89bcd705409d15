"""Two real processes on the CPU, started as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY, convnext
from helpers.paths import CONFIGS

from kd_convnext.cli import main

pytestmark = pytest.mark.slow
TWO = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.precision=32-true"]


@pytest.fixture
def at(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(folder, *words):
    """Runs a command with two processes; those with one run in this process."""
    done = subprocess.run(
        [sys.executable, "-m", "kd_convnext.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]


def test_distillation_on_two_processes(tiny_manifest, at):
    lines = tiny_manifest.read_text().splitlines()
    photographs = [f"{tiny_manifest.parent}/{line}" for line in lines[1:-1]]  # 59: parts that do not divide by two
    manifest = at / "m.csv"
    manifest.write_text("\n".join([lines[0], *photographs]) + "\n")
    data = [f"--data.manifest={manifest}", "--data.cache_dir=cache", *TINY]
    swin = ["--config", str(CONFIGS / "teacher_swin_tiny.yaml"), *SMALL_SWIN, *OFFLINE]
    assert main(["fit", *swin, *data, "--trainer.precision=32-true"]) == 0
    (teacher,) = (at / "runs" / "teacher_swin_tiny").iterdir()
    student = ["--config", str(CONFIGS / "kd_convnext_tiny.yaml"), *convnext("student")]
    student += ["--model.student.pretrained=false", f"--model.teacher_ckpt={teacher}/checkpoints/best.ckpt"]
    stored_answers = ["--data.loader.views=2", "--model.teacher_cache=true", "--name=stored"]
    run(at, "fit", *student, *data, *TWO, *stored_answers)
    shards = [np.load(path) for path in (at / "cache" / "teacher").glob("*/*.npy")]
    assert len(shards) == 2  # each process asked for its share
    (stored,) = (at / "runs" / "stored").iterdir()
    images = (pd.read_csv(stored / "split.csv")["split"] == "train").sum()
    assert len(np.unique(np.concatenate([shard["view"] for shard in shards]))) == images  # one epoch, one view of each
    run(at, "fit", *student, *data, *TWO)
    (folder,) = (at / "runs" / "kd_convnext_tiny").iterdir()
    metrics = [judged(at, folder, devices) for devices in (2, 1)]
    assert metrics[0].keys() == metrics[1].keys()
    for name, value in metrics[0].items():
        assert value == pytest.approx(metrics[1][name], abs=1e-6, nan_ok=True), name


def test_terms_that_read_no_logits_train_on_two_processes(tiny_manifest, at):
    data = [f"--data.manifest={tiny_manifest}", "--data.cache_dir=cache", *TINY]
    swin = ["--config", str(CONFIGS / "teacher_swin_tiny.yaml"), *SMALL_SWIN, *OFFLINE]
    assert main(["fit", *swin, *data, "--trainer.precision=32-true"]) == 0
    (teacher,) = (at / "runs" / "teacher_swin_tiny").iterdir()
    terms = {"embedding": {"class_path": "kd_convnext.losses.CosineEmbedding"}}
    objective = {"class_path": "kd_convnext.losses.Objective", "init_args": {"terms": terms}}
    model = {"class_path": "kd_convnext.DistillModule", "init_args": {"objective": objective}}
    (at / "embedding.yaml").write_text(yaml.safe_dump({"model": model}))
    student = ["--config", "embedding.yaml", *convnext("student")]
    student += ["--model.student.pretrained=false", f"--model.teacher_ckpt={teacher}/checkpoints/best.ckpt"]
    run(at, "fit", *student, *data, *TWO, "--trainer.max_epochs=2", "--trainer.default_root_dir=student")
    losses = pd.read_csv(at / "student" / "metrics.csv")["train/loss_embedding"].dropna()
    assert len(losses) == 2 and losses.iloc[1] < losses.iloc[0]


def recipe_in_small(folder):
    """Writes the shipped recipe for tiny networks: linear teacher, projector, averages, terms of three kinds."""
    vit = {"name": "vit_tiny_patch16_224", "image_size": 32, "token_blocks": 2}
    vit["args"] = {"depth": 3, "embed_dim": 24, "num_heads": 2, "patch_size": 8}
    linear = {"class_path": "kd_convnext.TeacherModule", "init_args": {"backbone": vit, "finetune": "linear"}}
    tiny = {"image_size": 32, "batch_size": 8, "loader": {"num_workers": 0}}
    one_step = {"max_epochs": 1, "limit_train_batches": 1, "accelerator": "cpu", "enable_progress_bar": False}
    (folder / "teacher.yaml").write_text(yaml.safe_dump({"model": linear, "data": tiny, "trainer": one_step}))
    projected = {"standardise": True, "projector": "linear"}
    terms = {
        "labels": {"class_path": "kd_convnext.losses.BalancedSoftmax"},
        "soft": {"class_path": "kd_convnext.losses.SoftTargets"},
        "embedding": {"class_path": "kd_convnext.losses.CosineEmbedding", "init_args": projected},
    }
    objective = {"class_path": "kd_convnext.losses.Objective", "init_args": {"terms": terms}}
    model = {"class_path": "kd_convnext.DistillModule", "init_args": {"objective": objective, "teacher_cache": True}}
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}
    recipe = {"teacher_config": "teacher.yaml", "model": model, "trainer": {"callbacks": [average]}}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def test_the_recipe_with_unlabelled_photographs_trains_on_two_processes(tiny_manifest, at):
    table = pd.read_csv(tiny_manifest, dtype=str)
    table["image"] = [f"{tiny_manifest.parent}/{name}" for name in table["image"]]
    unlabelled = table["lesion_id"].str.endswith("-0")
    table[~unlabelled].to_csv(at / "m.csv", index=False)
    table[unlabelled].drop(columns="label").to_csv(at / "others.csv", index=False)
    recipe_in_small(at)
    words = ["fit", "--config=recipe.yaml", *convnext("student"), *TINY, *TWO, "--data.cache_dir=cache"]
    words += ["--data.manifest=m.csv", "--data.unlabelled=others.csv", "--data.loader.views=2"]
    words += [
        "--data.loader.sampling=square_root",
        "--data.loader.unlabelled_sampling=balanced",
        "--trainer.default_root_dir=run",
    ]
    run(at, *words, "--trainer.max_epochs=2")
    labelled = int((pd.read_csv(at / "run" / "split.csv")["split"] == "train").sum())
    records = [np.load(path) for path in (at / "cache" / "teacher").glob("*/*.npy")]
    views = [record["view"] for record in records]
    # Two looks at a crop, labelled or not, lie side by side; views are of labelled ones. No process repeats another's.
    assert sorted({record.dtype["embedding"].shape[0] for record in records}) == [72, 144]
    count = labelled + int(unlabelled.sum()) + 2 * labelled
    assert len(np.unique(np.concatenate(views))) == sum(map(len, views)) == count
    losses = pd.read_csv(at / "run" / "metrics.csv")[["train/loss_soft", "train/loss_embedding"]].dropna()
    assert len(losses) == 2 and np.isfinite(losses).all(axis=None)
    assert losses["train/loss_embedding"].iloc[1] < losses["train/loss_embedding"].iloc[0]
    # A resume goes on with the averaged weights, the projector's among them, and needs the teacher's answers again.
    run(at, *words, "--trainer.max_epochs=3", "--ckpt_path=run/checkpoints/last.ckpt")
    last = torch.load(at / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["epoch"] == 2 and last["global_step"] == 6
    averaged, plain = last["state_dict"], last["current_model_state"]
    name = next(name for name in plain if name.startswith("objective.terms.embedding"))
    assert not torch.equal(averaged[name], plain[name])


def test_head_first_trains_the_head_alone_on_one_process_and_on_two(tiny_manifest, at):
    swin = ["--config", str(CONFIGS / "teacher_swin_tiny.yaml"), *SMALL_SWIN, *OFFLINE]
    swin += [f"--data.manifest={tiny_manifest}", "--data.cache_dir=cache", *TINY]
    swin += ["--model.finetune=head_first", "--model.head_epochs=1", "--trainer.max_epochs=1"]
    swin += ["--trainer.gradient_clip_val=0.01"]
    trained = []
    assert main(["fit", *swin, "--trainer.devices=1", "--trainer.precision=32-true", "--name=one"]) == 0
    run(at, "fit", *swin, *TWO, "--name=two")
    for name in ("one", "two"):
        (folder,) = (at / "runs" / name).iterdir()
        content = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
        (optimizer,) = content["optimizer_states"]
        heads = {n for group in optimizer["param_groups"] if group["name"] == "head" for n in group["params"]}
        assert heads and set(optimizer["state"]) == heads, name
        trained.append({key: value for key, value in content["state_dict"].items() if ".head." not in key})
    assert all(torch.equal(value, trained[1][key]) for key, value in trained[0].items() if "running" not in key)


def judged(at, folder: Path, devices: int) -> dict[str, float]:
    (folder / "metrics.json").unlink(missing_ok=True)
    words = ["--config", str(folder / "config.yaml"), f"--ckpt_path={folder}/checkpoints/best.ckpt"]
    words += [f"--trainer.devices={devices}", "--trainer.strategy=" + ("ddp" if devices > 1 else "auto")]
    for command in ("test", "validate", "predict"):
        if devices > 1:
            run(at, command, *words)
        else:
            assert main([command, *words]) == 0
    split = pd.read_csv(folder / "split.csv")
    answers = pd.read_csv(folder / "predictions.csv")
    assert answers["image"].is_unique
    assert set(answers["image"]) == set(split.loc[split["split"] == "test", "image"])
    assert len(pd.read_csv(folder / "predictions_all.csv")) == len(split) == 59
    return {
        name: float("nan") if v is None else v for name, v in json.loads((folder / "metrics.json").read_text()).items()
    }
