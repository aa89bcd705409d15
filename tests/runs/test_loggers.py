import json
import math
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.paths import CONFIGS
from helpers.wandb_reader import OfflineRun, read_runs
from helpers.wandb_server import listening
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from markdown_it import MarkdownIt
from PIL import Image

from kd_convnext import SpecimenDataModule, TeacherModule
from kd_convnext.cli import main
from kd_convnext.data.crops.spec import CropSpec
from kd_convnext.data.loading.spec import LoaderSpec
from kd_convnext.data.manifest.ids import hidden, normal_id
from kd_convnext.data.manifest.manifest import read_manifest
from kd_convnext.data.manifest.splits import SplitSpec
from kd_convnext.data.manifest.units import salt_of
from kd_convnext.errors import ConfigError
from kd_convnext.evaluation.answers import Evaluation
from kd_convnext.models.backbones import BackboneSpec
from kd_convnext.runs.folder import RunFolder
from kd_convnext.runs.loggers import log_confusion, log_figure, log_table
from kd_convnext.training.header import RunHeader
from kd_convnext.training.previews import AugmentationPreview, CurveFigures
from kd_convnext.training.progress_bar import DataWaitBar
from kd_convnext.training.record import RunRecord, most_telling

CLASSES = ("Grade 1", "Grade 2", "Grade 3", "AIS", "MIA")
SMALL = BackboneSpec(name="test_convnext", image_size=32)


def specimens(manifest: Path, cache: str | Path) -> SpecimenDataModule:
    return SpecimenDataModule(
        str(manifest),
        split=SplitSpec(ratios=(0.5, 0.25, 0.25)),
        cache_dir=str(cache),
        crops=CropSpec(upscaler="none", store_size=32),
        image_size=32,
        batch_size=8,
        loader=LoaderSpec(num_workers=0),
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
def teacher_run(tiny_manifest, tiny_cache, tmp_path_factory) -> RunFolder:
    """A teacher's fit and test with a CSV and a TensorBoard logger."""
    folder = tmp_path_factory.mktemp("teacher")
    seed_everything(1)
    data = specimens(tiny_manifest, tiny_cache)
    loggers = [
        CSVLogger(folder, name=None, version=""),
        TensorBoardLogger(folder, name=None, version="tensorboard"),
    ]
    trainer = trainer_for(folder, loggers)
    trainer.fit(TeacherModule(5, backbone=SMALL), datamodule=data)
    trainer.test(datamodule=data, ckpt_path=str(folder / "checkpoints" / "best.ckpt"), verbose=False)
    return RunFolder(folder)


@pytest.fixture(scope="module")
def wandb_runs(tiny_manifest, teacher_run, tmp_path_factory) -> tuple[OfflineRun, OfflineRun]:
    """A student's fit and test on the command line with ``configs/wandb.yaml``, off-line."""
    import wandb

    folder = tmp_path_factory.mktemp("student")
    words = ["--config", str(CONFIGS / "kd_convnext_tiny.yaml"), "--config", str(CONFIGS / "wandb.yaml")]
    words += [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={folder / 'cache'}"]
    words += [
        "--data.split.ratios=[0.5,0.25,0.25]",
        "--data.upscaler=none",
        "--data.crops.store_size=32",
        "--data.image_size=32",
    ]
    words += ["--data.batch_size=8", "--data.loader.num_workers=0", f"--model.teacher_ckpt={teacher_run.best}"]
    words += ["--model.student.name=test_convnext", "--model.student.pretrained=false", "--model.student.image_size=32"]
    words += ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]
    words += ["--wandb.pictures=true"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DATA_DIR", str(folder))  # tables wait there to be uploaded, by default in the home
        # W&B's own process keeps the working directory of the first run, from wherever that was.
        wandb.init(mode="offline", dir=tmp_path_factory.mktemp("elsewhere")).finish()
        patch.chdir(folder)
        patch.delenv("WANDB_CONSOLE", raising=False)
        assert main(["fit", *words]) == 0
        assert os.environ["WANDB_CONSOLE"] == "off"
        wandb.finish()
        (run,) = map(RunFolder, (folder / "runs" / "kd_convnext_tiny").iterdir())
        assert main(["test", "--config", str(run.config), "--ckpt_path", str(run.best)]) == 0
        wandb.finish()
    fitted, tested = read_runs(run.path, 2)
    return fitted, tested


# ---- Weights & Biases


def test_wandb_gets_the_resolved_config_and_every_loss_term(wandb_runs):
    fitted, tested = wandb_runs
    model = fitted.config["config"]["model"]
    assert model["class_path"].endswith("DistillModule")
    assert model["init_args"]["student"]["name"] == "test_convnext"
    assert fitted.config["config"]["data"]["batch_size"] == 8
    for term in ("loss", "loss_feature", "loss_soft", "loss_focal", "accuracy", "f1_macro", "auroc_macro"):
        curve = fitted.curve(f"train/{term}")
        assert len(curve) == 2 and all(math.isfinite(value) for value in curve), term
    assert len(fitted.curve("val/f1_macro")) == 2
    assert len(tested.curve("test/f1_macro")) == 1


def picture(run: OfflineRun, name: str) -> np.ndarray:
    entry = run.entry(name)
    (path,) = entry["filenames"] if "filenames" in entry else [entry["path"]]
    return np.asarray(Image.open(run.media / path))


@pytest.mark.parametrize("name", ["train/augmented_crops", "train/training_curves"])
def test_wandb_gets_pictures_of_a_fit(wandb_runs, name):
    assert picture(wandb_runs[0], name).std() > 0


@pytest.mark.parametrize("name", ["test/confusion_matrix", "test/lesion/confusion_matrix", "test/reliability"])
def test_wandb_gets_pictures_of_a_test(wandb_runs, name):
    assert picture(wandb_runs[1], name).std() > 0


def test_wandb_gets_the_confusion_matrix_as_its_chart(wandb_runs):
    table = wandb_runs[1].table("test/confusion_matrix_chart_table")
    counts = {(row[0], row[1]): row[2] for row in table["data"]}
    assert set(counts) == {(true, predicted) for true in CLASSES for predicted in CLASSES}
    assert sum(counts.values()) == len(wandb_runs[1].table("test/predictions")["data"])


def test_wandb_gets_the_per_class_table(wandb_runs):
    table = wandb_runs[1].table("test/per_class_table")
    assert table["columns"] == ["class", "support", "predicted", "precision", "recall", "f1"]
    assert tuple(row[0] for row in table["data"]) == CLASSES
    labels = [row[3] for row in wandb_runs[1].table("test/predictions")["data"]]
    assert [row[1] for row in table["data"]] == [labels.count(name) for name in CLASSES]


def test_wandb_gets_predictions_with_pictures_wrong_ones_first(wandb_runs):
    table = wandb_runs[1].table("test/predictions")
    assert table["columns"][:5] == ["picture", "image", "lesion_id", "label", "prediction"]
    assert [name for name in table["columns"] if name.startswith("prob_")] == [f"prob_{name}" for name in CLASSES]
    right = [row[3] == row[4] for row in table["data"]]
    assert right == sorted(right)
    first = table["data"][0]
    assert np.asarray(Image.open(wandb_runs[1].stored[first[0]["path"]])).shape == (32, 32, 3)
    assert sum(first[5:10]) == pytest.approx(1, abs=1e-5)


def test_wandb_gets_heat_maps_of_a_test(wandb_runs):
    assert picture(wandb_runs[1], "test/heat_maps").std() > 0


def test_wandb_gets_split_checkpoint_and_results_as_artifacts(wandb_runs):
    fitted, tested = wandb_runs
    assert {"split.csv", "best.ckpt"} <= set(fitted.stored)
    assert {"metrics.json", "predictions.csv"} <= set(tested.stored)
    assert fitted.stored["best.ckpt"].stat().st_size > 10_000
    for stored in (fitted.stored["split.csv"], tested.stored["predictions.csv"]):
        ids = pd.read_csv(stored, dtype=str, keep_default_na=False)["lesion_id"]
        assert ids.str.fullmatch("[0-9a-f]{12}").all(), "ids stay on this machine"
    shown = tested.table("test/predictions")
    assert not any(str(row[2]).startswith("L") for row in shown["data"])


def test_likely_ids_cannot_be_looked_up_in_what_wandb_gets(wandb_runs, tiny_manifest):
    """No text that is sent along, such as the hash of the split in best.ckpt, is the salt of the hashed ids."""
    fitted, tested = wandb_runs
    stored = [*fitted.stored.values(), *tested.stored.values()]
    sent = {found for path in stored for found in re.findall(rb"[0-9a-f]{64}", _unpacked(path))}
    manifest = read_manifest(tiny_manifest)
    split = torch.load(fitted.stored["best.ckpt"], weights_only=True)["kd_convnext"]["card"]["split_hash"]
    assert split.encode() in sent and salt_of(manifest).encode() not in sent
    tables = [
        pd.read_csv(run.stored[name], dtype=str) for run, name in ((fitted, "split.csv"), (tested, "predictions.csv"))
    ]
    hashed = {value for table in tables for name in ("image", "lesion_id") for value in table[name]}
    shown = tested.table("test/predictions")
    hashed |= {str(row[place]) for row in shown["data"] for place in (1, 2)}
    names = {f"lesion:{normal_id(name)}" for name in manifest.table["lesion_id"]}
    names |= {f"image:{name}" for name in manifest.table["image"]}
    assert hashed == {hidden(name, salt_of(manifest)) for name in names}
    assert not any(hidden(name, salt.decode()) in hashed for name in names for salt in sent)


def _unpacked(path) -> bytes:
    """Returns a file's content, that of an archive unpacked."""
    if not zipfile.is_zipfile(path):
        return path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        return b"\n".join(archive.read(name) for name in archive.namelist())


def test_wandb_is_loaded_late_and_disabled_by_its_variable(tmp_path):
    program = f"""
import os, sys
import pandas as pd
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger, WandbLogger
import kd_convnext.training.record
from kd_convnext.runs.loggers import log_table

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


@pytest.mark.parametrize("asked", [None, pytest.param("wrap", marks=pytest.mark.slow)])
def test_wandb_gets_what_is_printed_only_where_that_was_asked_for(tmp_path, asked):
    program = """
from lightning.pytorch.loggers import WandbLogger
from kd_convnext.runs.loggers import keep_console

keep_console()
run = WandbLogger(save_dir=".", offline=True).experiment
print("Patient 7.jpg")
run.finish()
"""
    own = {"HOME": str(tmp_path), "WANDB_DIR": str(tmp_path)} | ({"WANDB_CONSOLE": asked} if asked else {})
    others = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=others | own, cwd=tmp_path, check=True, capture_output=True, timeout=120)
    (record,) = tmp_path.rglob("*.wandb")
    assert (b"Patient 7.jpg" in record.read_bytes()) == (asked is not None)


@pytest.fixture(scope="module")
def saved_view(tmp_path_factory):
    """What W&B's client gives its server for the view that ``docs/examples/wandb_workspace.py`` lays out."""
    folder = tmp_path_factory.mktemp("view")
    script = CONFIGS.parent / "docs" / "examples" / "wandb_workspace.py"
    with listening() as (address, views):
        own = {"WANDB_BASE_URL": address, "WANDB_API_KEY": "0" * 40, "WANDB_ERROR_REPORTING": "false"}
        others = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
        command = [sys.executable, str(script), "lab/lungs", "Table 2"]
        options = {"env": others | own | {"HOME": str(folder)}, "cwd": folder, "timeout": 120}
        done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{address}/lab/lungs?nw=")
    (view,) = views
    return view


def test_the_dashboard_groups_an_experiment_s_runs(saved_view):
    assert [saved_view[name] for name in ("entityName", "projectName", "displayName")] == ["lab", "lungs", "Table 2"]
    section = json.loads(saved_view["spec"])["section"]
    (runs,) = section["runSets"]
    assert [key["name"] for key in runs["grouping"]] == ["group", "displayName"]
    assert [part["name"] for part in section["panelBankConfig"]["sections"]] == ["Learning", "Test", "Mistakes"]


def test_every_panel_of_the_dashboard_shows_what_runs_log(saved_view, wandb_runs):
    logged = {name for run in wandb_runs for step in run.history for name in step}
    parts = json.loads(saved_view["spec"])["section"]["panelBankConfig"]["sections"]
    configs = [json.dumps(panel["config"]) for part in parts for panel in part["panels"]]
    shown = [set(re.findall(r'"((?:train|val|test)/[^"]+|epoch)"', config)) for config in configs]
    assert len(shown) == 17 and all(shown)
    assert set().union(*shown) <= logged


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
    columns = ["image", "lesion_id", "label", "prediction", *(f"prob_{name}" for name in CLASSES)]
    assert list(table.columns)[:9] == columns
    assert metrics["test/accuracy"] == pytest.approx((table["label"] == table["prediction"]).mean())
    assert list(table["prediction"]) == [CLASSES[answer] for answer in probabilities.argmax(axis=1)]
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-6)
    assert {"test/f1_macro", "test/recall/MIA", "test/lesion/f1_macro"} <= set(metrics)
    assert metrics["test/support/AIS"] == 2 * metrics["test/lesion/support/AIS"] > 0


def test_environment_names_versions_and_device(teacher_run):
    record = json.loads(teacher_run.environment.read_text())
    assert record["device"].startswith("CPU (")
    assert record["versions"]["torch"] == torch.__version__.split("+")[0]


def test_validate_adds_its_metrics_beside_the_tests(teacher_run, tiny_manifest, tiny_cache):
    trainer = Trainer(logger=False, accelerator="cpu", callbacks=[RunRecord()], enable_progress_bar=False)
    module = TeacherModule.load_from_checkpoint(teacher_run.best)
    trainer.validate(module, specimens(tiny_manifest, tiny_cache), ckpt_path=str(teacher_run.best), verbose=False)
    metrics = json.loads(teacher_run.metrics.read_text())
    assert {"test/f1_macro", "val/f1_macro"} <= set(metrics)
    assert (teacher_run.figures / "val_reliability.png").is_file()


def test_tensorboard_gets_pictures_and_tables(teacher_run):
    events = (teacher_run.path / "tensorboard").glob("events.out.tfevents.*")
    content = b"".join(path.read_bytes() for path in events)
    for name in (b"train/augmented_crops", b"test/confusion_matrix", b"| class | support |"):
        assert name in content


def test_mistakes_are_shown_and_pictures_are_capped(teacher_run, tiny_manifest, tiny_cache, tmp_path, monkeypatch):
    tables = {}
    monkeypatch.setattr(
        "kd_convnext.training.record.log_table",
        lambda _, name, frame, step, pictures=None: tables.update({name: (frame, pictures)}),
    )
    record = RunRecord(max_pictures=5, picture_size=16)
    trainer = Trainer(
        default_root_dir=tmp_path, logger=False, accelerator="cpu", callbacks=[record], enable_progress_bar=False
    )
    module = TeacherModule.load_from_checkpoint(teacher_run.best)
    with torch.no_grad():  # one answer for everything
        module.backbone.head_parameters()[-1].copy_(torch.tensor([100.0, 0.0, 0.0, 0.0, 0.0]))
    trainer.test(module, specimens(tiny_manifest, tiny_cache), verbose=False)
    table, pictures = tables["test/predictions"]
    assert len(table) == 5
    assert set(table["prediction"]) == {"Grade 1"} and "Grade 1" not in set(table["label"])
    assert [picture.shape for picture in pictures] == [(16, 16, 3)] * 5
    assert len(pd.read_csv(RunFolder(tmp_path).predictions)) == 10
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
    module = TeacherModule(5, backbone=SMALL)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=3,
        accelerator="cpu",
        logger=False,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, datamodule=specimens(manifest, folder / "cache"))
    return torch.cat([parameter.flatten() for parameter in module.parameters()])


def test_callbacks_do_not_change_training(tiny_manifest, tmp_path):
    bare = weights_after(tiny_manifest, tmp_path, [])
    watched = weights_after(tiny_manifest, tmp_path, [AugmentationPreview(), RunRecord(), CurveFigures(), RunHeader()])
    assert torch.equal(bare, watched)


# ---- the helper by itself


def some_answers() -> Evaluation:
    probabilities = np.array([[0.6, 0.3, 0.1], [0.9, 0.05, 0.05], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3]])
    return Evaluation("test", np.arange(4), np.array([0, 1, 2, -1]), probabilities, CLASSES[:3])


def test_most_telling_are_sure_mistakes():
    # Mistakes at .9 and .8, then the unlabelled at .4, then the right one at .6.
    assert most_telling(some_answers()).tolist() == [1, 2, 3, 0]


def test_no_logger_is_no_work(monkeypatch):
    monkeypatch.setattr("kd_convnext.runs.loggers.confusion_matrix", None)
    log_confusion([], "test/confusion_matrix", some_answers(), 0)


def test_files_of_a_csv_logger_lie_in_its_figures(tmp_path):
    loggers = [CSVLogger(tmp_path, name=None, version="")]
    log_table(loggers, "test/numbers", pd.DataFrame({"a": [1, 2]}), 0)
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert {"figures/numbers.csv"} <= names


def test_names_in_a_table_of_tensorboard_are_no_markup(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logger = TensorBoardLogger(tmp_path, name=None, version="")
    name = "![D](https://evil.example/d.png)|*"
    log_table([logger], "test/numbers", pd.DataFrame({name: [0.123456], "class": [name]}), 0)
    logger.finalize("success")
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    (event,) = events.Tensors("test/numbers/text_summary")
    shown = MarkdownIt("commonmark").enable("table").render(event.tensor_proto.string_val[0].decode())
    assert shown.count(name) == 2 and "0.1235" in shown and "<img" not in shown


def test_an_unknown_logger_gets_no_pictures():
    from lightning.pytorch.loggers.logger import DummyLogger
    from matplotlib.figure import Figure

    log_figure([DummyLogger()], "test/figure", Figure(), 0)
