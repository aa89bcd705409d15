"""What teaches nothing with two classes is refused where a fit begins, never where a checkpoint is loaded."""

import warnings

import pytest
import torch
import yaml
from helpers import tiny
from helpers.command_line import TINY

from kd_convnext import DistillModule
from kd_convnext.cli import main
from kd_convnext.errors import ConfigError
from kd_convnext.losses import Focal, LogitStandardised, Objective, Term
from kd_convnext.training.before_crops import refuse_misfits

TERMS = {
    "labels": {"class_path": "kd_convnext.losses.Focal"},
    "soft": {"class_path": "kd_convnext.losses.LogitStandardised"},
}


@pytest.fixture
def manifest(tiny_manifest, tmp_path):
    head, *rows = tiny_manifest.read_text().splitlines()
    two = [f"{tiny_manifest.parent}/{row}" for row in rows if ",AIS," in row or ",MIA," in row]
    (tmp_path / "two.csv").write_text("\n".join([head, *two]) + "\n")
    return tmp_path / "two.csv"


def test_a_fit_is_refused_before_its_teacher(manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "teacher.yaml").write_text(yaml.safe_dump({"model": {"class_path": "kd_convnext.TeacherModule"}}))
    student = {"name": "convnext_tiny", "image_size": 32, "args": tiny.CONVNEXT}
    objective = {"class_path": "kd_convnext.losses.Objective", "init_args": {"terms": TERMS}}
    model = {"class_path": "kd_convnext.DistillModule", "init_args": {"student": student, "objective": objective}}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump({"model": model, "teacher_config": "teacher.yaml"}))
    words = [f"--data.manifest={manifest}", "--data.cache_dir=cache", "--trainer.default_root_dir=run"]
    assert main(["fit", "--config=student.yaml", *TINY, *words]) == 2
    said = capsys.readouterr()
    assert "LogitStandardised: standardised logits of 2 classes have no gradient" in said.err
    assert "The teacher first" not in said.out and not (tmp_path / "run/teacher").exists()


def test_a_checkpoint_is_loaded_tested_and_resumed(manifest, tiny_cache, tmp_path, monkeypatch):
    source, ckpts = tiny.data(manifest, tiny_cache), (tmp_path / "teacher.ckpt", tmp_path / "student.ckpt")

    def distilled():
        objective = Objective({"labels": Focal(), "soft": LogitStandardised()})
        return tiny.student(source, ckpts[0], objective=objective, class_weights=None)

    def fit(module, ckpt, epochs=1, **options):
        trainer = tiny.trainer(tmp_path, epochs, limit_train_batches=1, limit_val_batches=1)
        trainer.fit(module, datamodule=source, **options)
        trainer.save_checkpoint(ckpt)
        return trainer

    fit(tiny.teacher(source), ckpts[0])
    with monkeypatch.context() as earlier:  # as before two classes were refused
        earlier.setattr(LogitStandardised, "start_findings", Term.start_findings)
        earlier.setattr(Focal, "start_findings", Term.start_findings)
        fit(distilled(), ckpts[1])
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*told no weights")
        module = DistillModule.load_from_checkpoint(ckpts[1], map_location="cpu")
        tiny.trainer(tmp_path).test(module, datamodule=source, verbose=False)
        assert fit(distilled(), ckpts[1], 2, ckpt_path=ckpts[1]).current_epoch == 2
        refuse_misfits(source, module, source.class_names, fitting=True)
    assert torch.load(ckpts[1], weights_only=True)["epoch"] == 2
    with pytest.raises(ConfigError, match="2 classes"), pytest.warns(UserWarning, match="told no weights"):
        fit(distilled(), ckpts[1])
