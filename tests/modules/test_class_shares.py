"""Classes are weighed by the photographs that training uses: not by those that turned out to be unreadable."""

import shutil

import numpy as np
import pytest
import torch
from helpers import tiny
from helpers.bad_files import cut_short
from helpers.command_line import OFFLINE, SMALL_SWIN, TINY
from PIL import Image

from kd_convnext.cli import main
from kd_convnext.data.manifest.grouping import group_hashes
from kd_convnext.losses import BalancedSoftmax, Objective

GONE = ("0_0_0.png", "0_0_1.png", "0_1_0.png")


@pytest.fixture
def damaged(tiny_manifest, tmp_path):
    """A manifest of 36 training photographs of five classes; three of the first cannot be read, a whole lesion."""
    head, *rows = tiny_manifest.read_text().splitlines()
    shutil.copytree(tiny_manifest.parent, tmp_path / "photographs")
    for name in GONE:
        cut_short(tmp_path / "photographs" / name)
    parts = ["train" if row.split("_")[1] < "4" else {"4": "val", "5": "test"}[row.split("_")[1]] for row in rows]
    lines = [f"{head},split", *(f"{row},{part}" for row, part in zip(rows, parts, strict=True))]
    path = tmp_path / "photographs" / "manifest.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def source(damaged, tmp_path, **options):
    return tiny.data(damaged, str(tmp_path / "cache"), on_error="skip", **options)


def test_a_fit_weighs_classes_and_remembers_lesions_by_what_it_has_seen(damaged, tmp_path):
    words = [*TINY, *SMALL_SWIN, *OFFLINE, f"--data.manifest={damaged}", f"--data.cache_dir={tmp_path / 'cache'}"]
    words += ["--model=kd_convnext.TeacherModule", "--data.on_error=skip"]
    assert main(["fit", *words, f"--trainer.default_root_dir={tmp_path / 'run'}"]) == 0
    found = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)
    raw = np.array([1 / 5, *[1 / 8] * 4])  # of eight training photographs of the first class, five are left
    assert found["hyper_parameters"]["class_weights"] == pytest.approx(raw / raw.mean())
    data = source(damaged, tmp_path)
    gone = group_hashes(data.manifest.table, np.array([0, 1]))
    kept = group_hashes(data.manifest.table, np.array([3]))
    data.setup("fit")
    assert not len(data.card().shared(gone)) and len(data.card().shared(kept)) == len(kept)
    assert found["kd_convnext"]["card"]["seen_groups"].tolist() == data.card().seen_groups.tolist()


def test_a_students_terms_count_what_is_used(damaged, tmp_path):
    data = source(damaged, tmp_path)
    module = tiny.student(data, objective=Objective({"labels": BalancedSoftmax()}))
    assert module.objective.named_terms()["labels"].counts.tolist() == [8] * 5
    tiny.trainer(tmp_path, limit_train_batches=1).fit(module, datamodule=data)
    assert module.objective.named_terms()["labels"].counts.tolist() == [5, 8, 8, 8, 8]
    assert module.hparams["class_counts"] == [5, 8, 8, 8, 8]
    assert module.task_loss.class_weights.tolist() == pytest.approx(data.class_weights)


def test_weights_that_were_chosen_stay(damaged, tmp_path):
    data = source(damaged, tmp_path)
    given = {"class_weights": [1.0, 2.0, 3.0, 4.0, 5.0], "class_counts": [9, 9, 9, 9, 9]}
    module = tiny.student(data, objective=Objective({"labels": BalancedSoftmax()}), **given)
    tiny.trainer(tmp_path, limit_train_batches=1).fit(module, datamodule=data)
    assert module.task_loss.class_weights.tolist() == [1, 2, 3, 4, 5] and module.hparams["class_counts"] == [9] * 5


def test_chosen_weights_stay_where_the_counts_are_the_data_s(damaged, tmp_path):
    data = source(damaged, tmp_path)
    given = {"class_weights": [1.0, 2.0, 3.0, 4.0, 5.0], "class_counts": data.class_counts}
    module = tiny.student(data, objective=Objective({"labels": BalancedSoftmax()}), **given)
    tiny.trainer(tmp_path, limit_train_batches=1).fit(module, datamodule=data)
    assert module.task_loss.class_weights.tolist() == [1, 2, 3, 4, 5]
    assert module.hparams["class_counts"] == data.class_counts != given["class_counts"]


def test_photographs_without_labels_that_cannot_be_read_have_not_been_seen(damaged, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 256, (30, 30, 3), np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    cut_short(folder / "0.png")
    data = source(damaged, tmp_path, unlabelled=str(folder))
    names = [group_hashes(data.unlabelled.manifest.table, np.array([row]), unlabelled=True) for row in range(3)]
    data.setup("fit")
    assert [len(data.card().shared(name)) for name in names] == [0, 1, 1]
