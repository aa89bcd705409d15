import csv
import json
import math
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from PIL import Image
from wandb_reader import OfflineRun, read_run

from kd_convnext import DistillModule, SpecimenDataModule, TeacherModule
from kd_convnext.callbacks import (
    AugmentationPreview,
    CurveFigures,
    DataWaitBar,
    RunHeader,
    RunRecord,
    most_telling,
)
from kd_convnext.errors import ConfigError
from kd_convnext.evaluation import Evaluation
from kd_convnext.models.backbones import BackboneSpec
from kd_convnext.runs import RunFolder
from kd_convnext.tracking import log_confusion, log_figure, log_images, log_table

CLASSES = ("AIS", "Grade 1", "MIA")
SMALL = BackboneSpec(name="test_convnext", image_size=32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Ten lesions of each of three classes, two photographs each: noise around the class's colour."""
    folder = tmp_path_factory.mktemp("photographs")
    rng = np.random.default_rng(0)
    rows = [["image", "label", "lesion_id"]]
    for label, name in enumerate(CLASSES):
        for lesion in range(10):
            for view in range(2):
                pixels = rng.integers(0, 120, (36, 36, 3)).astype(np.uint8)
                pixels[..., label] += 60
                image = f"{label}-{lesion}-{view}.png"
                cv2.imwrite(str(folder / image), pixels)
                rows.append([image, name, f"{name}-{lesion}"])
    with (folder / "manifest.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "manifest.csv"


def specimens(manifest: Path) -> SpecimenDataModule:
    return SpecimenDataModule(
        str(manifest),
        ratios=(0.6, 0.2, 0.2),
        cache_dir=str(manifest.parent / "cache"),
        upscaler="none",
        store_size=32,
        image_size=32,
        batch_size=8,
        num_workers=0,
    )


def trainer_for(folder: Path, logger: Logger | list[Logger] | bool, **options) -> Trainer:
    checkpoint = ModelCheckpoint(
        folder / "checkpoints", filename="best", monitor="val/f1_macro", mode="max", enable_version_counter=False
    )
    callbacks = [
        RunRecord(log_validation=True),
        AugmentationPreview(pictures=6),
        CurveFigures(),
        RunHeader(distill_config="configs/kd_convnext_tiny.yaml"),
        DataWaitBar(refresh_rate=1),
        checkpoint,
    ]
    settings = {"max_epochs": 2, "accelerator": "cpu", "log_every_n_steps": 1, "callbacks": callbacks}
    return Trainer(default_root_dir=folder, logger=logger, **(settings | options))


@pytest.fixture(scope="module")
def teacher_run(manifest, tmp_path_factory) -> RunFolder:
    """A teacher's fit and test with a CSV and a TensorBoard logger."""
    folder = tmp_path_factory.mktemp("teacher")
    seed_everything(1)
    data = specimens(manifest)
    loggers = [
        CSVLogger(folder, name=None, version=""),
        TensorBoardLogger(folder, name=None, version="tensorboard"),
    ]
    trainer = trainer_for(folder, loggers)
    trainer.fit(TeacherModule(3, backbone=SMALL), datamodule=data)
    trainer.test(datamodule=data, ckpt_path=str(folder / "checkpoints" / "best.ckpt"), verbose=False)
    return RunFolder(folder)


@pytest.fixture(scope="module")
def wandb_run(manifest, teacher_run, tmp_path_factory) -> OfflineRun:
    """A student's fit and test with W&B, off-line."""
    import wandb

    folder = tmp_path_factory.mktemp("student")
    seed_everything(2)
    data = specimens(manifest)
    student = DistillModule(3, teacher_ckpt=str(teacher_run.best), student=SMALL)
    logger = WandbLogger(project="test", save_dir=folder, offline=True)
    trainer = trainer_for(folder, logger)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(folder))  # tables wait there to be uploaded, by default in the home
        trainer.fit(student, datamodule=data)
        trainer.test(datamodule=data, ckpt_path=str(folder / "checkpoints" / "best.ckpt"), verbose=False)
        wandb.finish()
    return read_run(folder)


# ---- Weights & Biases


def test_wandb_gets_config_and_every_loss_term(wandb_run):
    assert wandb_run.config["alpha"] == 0.5
    assert wandb_run.config["student"]["name"] == "test_convnext"
    for term in ("loss", "loss_feature", "loss_soft", "loss_focal", "f1_macro"):
        curve = wandb_run.curve(f"train/{term}")
        assert len(curve) == 2 and all(math.isfinite(value) for value in curve), term
    assert len(wandb_run.curve("val/f1_macro")) == 2
    assert len(wandb_run.curve("test/f1_macro")) == 1


def picture(run: OfflineRun, name: str) -> np.ndarray:
    entry = run.entry(name)
    (path,) = entry["filenames"] if "filenames" in entry else [entry["path"]]
    return np.asarray(Image.open(run.media / path))


@pytest.mark.parametrize(
    "name",
    ["train/augmented_crops", "val/confusion_matrix", "test/confusion_matrix", "test/lesion/confusion_matrix"],
)
def test_wandb_gets_pictures(wandb_run, name):
    assert picture(wandb_run, name).std() > 0


def test_wandb_gets_the_confusion_matrix_as_its_chart(wandb_run):
    table = wandb_run.table("test/confusion_matrix_chart_table")
    counts = {(row[0], row[1]): row[2] for row in table["data"]}
    assert set(counts) == {(true, predicted) for true in CLASSES for predicted in CLASSES}
    assert sum(counts.values()) == 12


def test_wandb_gets_the_per_class_table(wandb_run):
    table = wandb_run.table("test/per_class_table")
    assert table["columns"] == ["class", "support", "predicted", "precision", "recall", "f1"]
    assert [row[:2] for row in table["data"]] == [[name, 4] for name in CLASSES]


def test_wandb_gets_predictions_with_pictures_wrong_ones_first(wandb_run):
    table = wandb_run.table("test/predictions")
    assert table["columns"][:5] == ["picture", "image", "lesion_id", "label", "prediction"]
    assert table["columns"][5:] == [f"prob_{name}" for name in CLASSES]
    assert len(table["data"]) == 12
    right = [row[3] == row[4] for row in table["data"]]
    assert right == sorted(right)
    first = table["data"][0]
    assert np.asarray(Image.open(wandb_run.stored[first[0]["path"]])).shape == (32, 32, 3)
    assert sum(first[5:]) == pytest.approx(1, abs=1e-5)


def test_wandb_is_loaded_late_and_disabled_by_its_variable(tmp_path):
    program = f"""
import os, sys
import pandas as pd
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, WandbLogger
import kd_convnext.callbacks
from kd_convnext.tracking import log_table

frame = pd.DataFrame({{"a": [1]}})
log_table([CSVLogger({str(tmp_path)!r}, name=None, version="")], "test/table", frame, 0)
assert "wandb" not in sys.modules
os.environ["WANDB_MODE"] = "disabled"
log_table([WandbLogger(save_dir={str(tmp_path)!r})], "test/table", frame, 0)
assert "wandb" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    assert (tmp_path / "figures" / "table.csv").is_file()
    assert not list(tmp_path.rglob("*.wandb"))


# ---- the run's folder


def test_a_run_leaves_the_fixed_tree(teacher_run):
    for path in (teacher_run.split, teacher_run.environment, teacher_run.best, teacher_run.metrics):
        assert path.is_file(), path
    assert {path.name for path in teacher_run.figures.iterdir()} >= {
        "augmented_crops.png",
        "training_curves.png",
        "confusion_matrix.png",
        "per_class.png",
        "reliability.png",
        "lesion_confusion_matrix.png",
        "val_confusion_matrix.png",
        "per_class_table.csv",
    }
    assert pd.read_csv(teacher_run.split).shape[0] == 60


def test_metrics_and_predictions_agree(teacher_run):
    metrics = json.loads(teacher_run.metrics.read_text())
    table = pd.read_csv(teacher_run.predictions)
    probabilities = table[[f"prob_{name}" for name in CLASSES]].to_numpy()
    assert list(table.columns) == ["image", "lesion_id", "label", "prediction", *(f"prob_{c}" for c in CLASSES)]
    assert metrics["test/accuracy"] == pytest.approx((table["label"] == table["prediction"]).mean())
    assert list(table["prediction"]) == [CLASSES[answer] for answer in probabilities.argmax(axis=1)]
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert {"test/f1_macro", "test/recall/MIA", "test/lesion/f1_macro"} <= set(metrics)
    assert metrics["test/lesion/support/AIS"] == 2


def test_environment_names_versions_and_device(teacher_run):
    record = json.loads(teacher_run.environment.read_text())
    assert record["device"].startswith("CPU (")
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]


def test_validate_adds_its_metrics_beside_the_tests(teacher_run, manifest):
    trainer = Trainer(logger=False, accelerator="cpu", callbacks=[RunRecord()], enable_progress_bar=False)
    module = TeacherModule.load_from_checkpoint(teacher_run.best)
    trainer.validate(module, specimens(manifest), ckpt_path=str(teacher_run.best), verbose=False)
    metrics = json.loads(teacher_run.metrics.read_text())
    assert {"test/f1_macro", "val/f1_macro"} <= set(metrics)
    assert (teacher_run.figures / "val_reliability.png").is_file()


def test_tensorboard_gets_pictures_and_tables(teacher_run):
    events = (teacher_run.path / "tensorboard").glob("events.out.tfevents.*")
    content = b"".join(path.read_bytes() for path in events)
    for name in (b"train/augmented_crops", b"test/confusion_matrix", b"| class | support |"):
        assert name in content


def test_mistakes_are_shown_and_pictures_are_capped(teacher_run, manifest, tmp_path, monkeypatch):
    tables = {}
    monkeypatch.setattr(
        "kd_convnext.callbacks.log_table",
        lambda _, name, frame, step, pictures=None: tables.update({name: (frame, pictures)}),
    )
    record = RunRecord(max_pictures=5, picture_size=16)
    trainer = Trainer(
        default_root_dir=tmp_path, logger=False, accelerator="cpu", callbacks=[record], enable_progress_bar=False
    )
    module = TeacherModule.load_from_checkpoint(teacher_run.best)
    with torch.no_grad():  # one answer for everything
        module.backbone.head_parameters()[-1].copy_(torch.tensor([100.0, 0.0, 0.0]))
    trainer.test(module, specimens(manifest), verbose=False)
    table, pictures = tables["test/predictions"]
    assert len(table) == 5
    assert set(table["prediction"]) == {"AIS"} and "AIS" not in set(table["label"])
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 5
    assert len(pd.read_csv(RunFolder(tmp_path).predictions)) == 12
    assert (RunFolder(tmp_path).figures / "misclassified.png").is_file()


def test_other_data_than_ours_is_refused_in_words(tmp_path):
    trainer = Trainer(
        default_root_dir=tmp_path, accelerator="cpu", logger=False, callbacks=[RunRecord()], enable_progress_bar=False
    )
    with pytest.raises(ConfigError, match="leave this callback out"):
        trainer.fit(BoringModel())


# ---- training is left alone


def weights_after(manifest: Path, folder: Path, callbacks: list) -> torch.Tensor:
    seed_everything(3)
    module = TeacherModule(3, backbone=SMALL)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=3,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=specimens(manifest))
    return torch.cat([parameter.flatten() for parameter in module.parameters()])


def test_callbacks_do_not_change_training(manifest, tmp_path):
    bare = weights_after(manifest, tmp_path, [])
    watched = weights_after(manifest, tmp_path, [AugmentationPreview(), RunRecord(), CurveFigures(), RunHeader()])
    assert torch.equal(bare, watched)


# ---- the helper by itself


def some_answers() -> Evaluation:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]])
    return Evaluation("test", np.arange(4), np.array([0, 1, 2, -1]), probabilities, CLASSES)


def test_most_telling_are_sure_mistakes():
    # Mistakes at .9 and .8, then the unlabelled at .4, then the right one at .6.
    assert most_telling(some_answers()).tolist() == [1, 2, 3, 0]


def test_no_logger_is_no_work(monkeypatch):
    monkeypatch.setattr("kd_convnext.tracking.confusion_matrix", None)
    log_confusion([], "test/confusion_matrix", some_answers(), 0)


def test_files_of_a_csv_logger_lie_in_its_figures(tmp_path):
    loggers = [CSVLogger(tmp_path, name=None, version="")]
    pixels = [np.zeros((8, 8, 3), np.uint8)] * 3
    log_images(loggers, "val/crops", pixels, ["a", "b", "c"], 0)
    log_table(loggers, "test/numbers", pd.DataFrame({"a": [1, 2]}), 0)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {"figures/val_crops.png", "figures/numbers.csv"} <= names


def test_an_unknown_logger_gets_no_pictures():
    from lightning.pytorch.loggers.logger import DummyLogger
    from matplotlib.figure import Figure

    log_figure([DummyLogger()], "test/figure", Figure(), 0)
