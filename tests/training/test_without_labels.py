"""A student learns a frozen network's features without labels, and then classes on photographs that have them."""

import csv

import numpy as np
import pytest
import torch
import yaml
from helpers import tiny
from helpers.command_line import TINY, convnext
from helpers.tiny import CONVNEXT
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.data.loading.mixing import MixedDataset
from kd_convnext.losses import Objective, SoftTargets

STUDENT = {"name": "convnext_tiny", "image_size": 32, "args": CONVNEXT}
SMALL = {
    "trainer": {"max_epochs": 1, "limit_train_batches": 2, "accelerator": "cpu", "enable_progress_bar": False},
    "data": {"image_size": 32, "batch_size": 8, "loader": {"num_workers": 0}},
}
EMBEDDING = {
    "class_path": "kd_convnext.losses.CosineEmbedding",
    "init_args": {"projector": "linear", "standardise": True},
}


def config(terms, **data):
    objective = {"class_path": "kd_convnext.losses.Objective", "init_args": {"terms": terms}}
    init = {"student": STUDENT, "objective": objective, "teacher_cache": "still"}
    return {
        "model": {"class_path": "kd_convnext.DistillModule", "init_args": init},
        "data": SMALL["data"] | data,
        "trainer": SMALL["trainer"],
        "teacher_config": "teacher.yaml",
    }


@pytest.fixture
def place(tmp_path, monkeypatch, tiny_manifest, tiny_cache):
    monkeypatch.chdir(tmp_path)
    vit = {
        "name": "vit_tiny_patch16_224",
        "image_size": 32,
        "token_blocks": 2,
        "args": {"depth": 3, "embed_dim": 24, "num_heads": 2, "patch_size": 8},
    }
    teacher = {
        "model": {
            "class_path": "kd_convnext.TeacherModule",
            "init_args": {"backbone": vit, "finetune": "linear"},
        },
        **SMALL,
    }
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(config({"embedding": EMBEDDING}, labels="ignore")))
    with tiny_manifest.open() as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        row["image"] = str(tiny_manifest.parent / row["image"])
        del row["label"]
    with (tmp_path / "photographs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return ["fit", "--config", "pretrain.yaml", *TINY, f"--data.cache_dir={tiny_cache}"]


def test_a_fit_needs_no_labels(place, tmp_path, tiny_manifest, tiny_cache, capsys):
    words = [*place, "--data.manifest=photographs.csv", "--trainer.default_root_dir=start", "--trainer.max_epochs=2"]
    assert main([*words, "--header.distill_config=student.yaml"]) == 0
    out = capsys.readouterr().out
    # One class is always right: that is no score.
    assert "Best epoch" not in out and "--ckpt_path" not in out
    assert "--model.student.weights start/checkpoints/best.ckpt" in out
    start = torch.load(tmp_path / "start/checkpoints/best.ckpt", weights_only=True)
    assert start["kd_convnext"]["class_names"] == ["unlabelled"]
    with (tmp_path / "start/metrics.csv").open() as file:
        logged = set(next(csv.reader(file)))
    assert "train/loss_embedding" in logged
    assert not [name for name in logged if name.startswith("val") or name.endswith(("accuracy", "f1_macro", "ece"))]
    end = torch.load(tmp_path / "start/checkpoints/last.ckpt", weights_only=True)
    assert start["epoch"] == end["epoch"] == 2
    assert all(torch.equal(value, start["state_dict"][name]) for name, value in end["state_dict"].items())
    for judging in ("validate", "test"):
        words = [judging, "--config=start/config.yaml", "--ckpt_path=start/checkpoints/best.ckpt"]
        assert main(words) == 2 and "--data.labels" in capsys.readouterr().err
    student = ["--model=kd_convnext.TeacherModule", "--model.backbone.weights=start/checkpoints/best.ckpt"]
    shape = [f"--model.backbone.{name}={value}" for name, value in STUDENT.items() if name != "args"]
    shape += [f"--model.backbone.args={CONVNEXT}"]
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}", "--data.allow_leak=true"]
    assert main(["fit", *student, *shape, *TINY, *data, "--trainer.default_root_dir=run"]) == 0
    end = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    assert len(end["kd_convnext"]["class_names"]) == 5
    # Photographs that the start has seen are known to the network that began there.
    assert end["kd_convnext"]["card"]["leak_allowed"]


@pytest.mark.slow
def test_labels_that_are_there_are_not_read(place, tmp_path, tiny_manifest):
    words = [*place, f"--data.manifest={tiny_manifest}", "--trainer.default_root_dir=start"]
    assert main(words) == 0
    assert "unlabelled" in (tmp_path / "start/split.csv").read_text()


def test_a_term_that_learns_from_labels_is_refused(place, tmp_path, capsys):
    terms = {"embedding": EMBEDDING, "labels": {"class_path": "kd_convnext.losses.CrossEntropy"}}
    (tmp_path / "pretrain.yaml").write_text(yaml.safe_dump(config(terms, labels="ignore")))
    words = [*place, "--data.manifest=photographs.csv", "--trainer.default_root_dir=start"]
    assert main(words) == 2
    assert "objective.terms.labels" in capsys.readouterr().err


def test_a_network_trained_on_labels_alone_is_refused(place, tmp_path, capsys):
    teacher = yaml.safe_load((tmp_path / "teacher.yaml").read_text())
    teacher["model"]["init_args"]["finetune"] = "full"
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump(teacher))
    words = ["fit", "--config", "teacher.yaml", *place[3:], "--data.labels=ignore", "--data.manifest=photographs.csv"]
    assert main([*words, "--trainer.default_root_dir=start"]) == 2
    assert "--data.labels" in capsys.readouterr().err


@pytest.mark.slow
def test_one_command_trains_teacher_and_student_on_photographs_with_and_without_labels(place, tmp_path, tiny_manifest):
    terms = {"embedding": EMBEDDING, "labels": {"class_path": "kd_convnext.losses.CrossEntropy"}}
    student = config(terms, unlabelled="photographs.csv", allow_leak=True)
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(student))
    words = ["fit", "--config", "student.yaml", *place[3:], f"--data.manifest={tiny_manifest}"]
    assert main([*words, "--trainer.default_root_dir=run"]) == 0
    found = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert found["model"]["init_args"]["teacher_ckpt"].endswith("run/teacher/checkpoints/best.ckpt")
    assert (tmp_path / "run/metrics.csv").is_file() and (tmp_path / "run/teacher/metrics.csv").is_file()


def test_unlabelled_lesions_of_the_test_part_are_refused_before_a_teacher_is_trained(
    place, tmp_path, tiny_manifest, capsys
):
    terms = {"embedding": EMBEDDING, "labels": {"class_path": "kd_convnext.losses.CrossEntropy"}}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(config(terms, unlabelled="photographs.csv")))
    words = ["fit", "--config", "student.yaml", *place[3:], f"--data.manifest={tiny_manifest}"]
    assert main([*words, "--trainer.default_root_dir=run"]) == 2
    assert "all are listed in run/unlabelled_judged.csv" in capsys.readouterr().err
    assert len((tmp_path / "run/unlabelled_judged.csv").read_text().splitlines()) == 1 + 30
    assert not (tmp_path / "run/teacher").exists()


@pytest.fixture
def others(tmp_path, tiny_manifest):
    """A folder of photographs that nobody has labelled."""
    (tmp_path / "others").mkdir()
    rng = np.random.default_rng(1)
    for number in range(6):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "others" / f"{number}.png")
    return ["fit", f"--data.manifest={tiny_manifest}", "--data.unlabelled=others", "--trainer.default_root_dir=run"]


def told_of_them(warned):
    return sum("--data: unlabelled has no effect" in str(entry.message) for entry in warned)


def test_neither_manifest_needs_labels_where_they_are_ignored(place, others, tmp_path, capsys):
    words = [*place, "--data.manifest=photographs.csv", "--data.unlabelled=others", "--trainer.default_root_dir=start"]
    assert main(words) == 0
    assert (tmp_path / "start/checkpoints/best.ckpt").is_file()
    assert capsys.readouterr().out.count("each of the 6 photographs without labels is drawn") == 1


@pytest.mark.parametrize("option", ["loss=cross_entropy", "loss=focal", "finetune=linear"])
def test_photographs_without_labels_are_left_out_where_no_teacher_answers_for_them(place, others, option, recwarn):
    model = ["--model=kd_convnext.TeacherModule", *convnext("backbone"), f"--model.{option}"]
    assert main([*others, *model, *place[3:]]) == 0
    assert told_of_them(recwarn) == 1


def test_a_student_of_labels_alone_leaves_them_out_too(place, others, tmp_path, recwarn):
    student = config({"labels": {"class_path": "kd_convnext.losses.CrossEntropy"}})
    del student["teacher_config"], student["model"]["init_args"]["teacher_cache"]
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(student))
    assert main([*others, "--config=alone.yaml", *place[3:]]) == 0
    assert told_of_them(recwarn) == 1
    card = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["kd_convnext"]["card"]
    (tmp_path / "without.yaml").write_text(yaml.safe_dump(student))
    words = [word for word in others if "unlabelled" not in word and "root_dir" not in word]
    assert main([*words, "--config=without.yaml", *place[3:], "--trainer.default_root_dir=without"]) == 0
    alike = torch.load(tmp_path / "without/checkpoints/best.ckpt", weights_only=True)["kd_convnext"]["card"]
    assert torch.equal(torch.as_tensor(card["seen_groups"]), torch.as_tensor(alike["seen_groups"]))
    curves = [(tmp_path / run / "metrics.csv").read_text() for run in ("run", "without")]
    assert curves[0] == curves[1]


def test_a_trainer_of_ones_own_leaves_them_out_too(place, others, tmp_path, tiny_manifest, tiny_cache):
    source = tiny.data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path / "others"))
    fit = tiny.trainer(tmp_path / "own", limit_train_batches=1)
    with pytest.warns(UserWarning, match="unlabelled has no effect"):
        fit.fit(tiny.teacher(source, loss="cross_entropy"), datamodule=source)
    assert source.unlabelled is None and not isinstance(source.train_set, MixedDataset)


def test_data_that_a_training_without_them_has_seen_has_them_again_for_the_next(
    others, tmp_path, tiny_manifest, tiny_cache
):
    source = tiny.data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path / "others"))
    teacher = tiny.teacher(source)
    with pytest.warns(UserWarning, match="unlabelled has no effect"):
        fit = tiny.trainer(tmp_path / "teacher", limit_train_batches=1)
        fit.fit(teacher, datamodule=source)
    fit.save_checkpoint(tmp_path / "teacher.ckpt")
    objective = Objective({"soft": SoftTargets()})
    student = tiny.student(source, tmp_path / "teacher.ckpt", objective=objective)
    tiny.trainer(tmp_path / "student", limit_train_batches=1).fit(student, datamodule=source)
    assert source.unlabelled is not None and isinstance(source.train_set, MixedDataset)
    with pytest.warns(UserWarning, match="unlabelled has no effect"):
        tiny.trainer(tmp_path / "again", limit_train_batches=1).fit(tiny.teacher(source), datamodule=source)
    assert source.unlabelled is None and not isinstance(source.train_set, MixedDataset)
