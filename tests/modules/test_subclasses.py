"""A user's own modules do everything that the package's do."""

import json

import pytest
import yaml
from helpers.command_line import TINY
from helpers.subclasses import Plain, ScaledStudent, SmoothTeacher
from helpers.tiny import CONVNEXT_SPEC, SWIN_SPEC, data, student, trainer

from kd_convnext import Predictor
from kd_convnext.checkpoints.network import load_network
from kd_convnext.cli import main
from kd_convnext.common.trust import trusting
from kd_convnext.errors import CheckpointError
from kd_convnext.experiment.plan.configuration import is_distilling
from kd_convnext.losses import CrossEntropy, Objective
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.modules.optim import OptimSpec


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


@pytest.fixture(scope="module")
def fitted(source, tmp_path_factory):
    """Fits each of them; the student is taught by the first."""
    folder, found = tmp_path_factory.mktemp("own"), {}
    for name, make in {
        "teacher": lambda: SmoothTeacher(5, smoothing=0.2, backbone=SWIN_SPEC, optim=OptimSpec(lr=1e-3)),
        "plain": lambda: Plain(5, trunk=CONVNEXT_SPEC),
        "student": lambda: ScaledStudent(5, student=CONVNEXT_SPEC, teacher_ckpt=str(found["teacher"])),
    }.items():
        fit = trainer(folder, limit_train_batches=2)
        fit.fit(make(), datamodule=source)
        found[name] = folder / f"{name}.ckpt"
        fit.save_checkpoint(found[name])
    return found


@pytest.mark.parametrize("name, distilled", [("teacher", False), ("plain", False), ("student", True)])
def test_answers(fitted, tiny_manifest, name, distilled):
    predictor = Predictor.from_checkpoint(fitted[name])
    assert predictor.network.info.distilled is distilled
    (answer,) = predictor.predict_many([photograph(tiny_manifest)])
    assert answer.probabilities.sum() == pytest.approx(1)


def photograph(manifest):
    from kd_convnext.inference.prediction import Photograph

    return Photograph(manifest.parent / "0_0_0.png")


def test_resumes_with_its_own_arguments(fitted, source, tmp_path):
    module = SmoothTeacher.load_from_checkpoint(fitted["teacher"])
    assert module.smoothing == 0.2
    fit = trainer(tmp_path, epochs=2, limit_train_batches=2)
    fit.fit(module, datamodule=source, ckpt_path=fitted["teacher"])
    assert fit.global_step == 4


def test_starts_another_network(fitted):
    spec = BackboneSpec(name=CONVNEXT_SPEC.name, image_size=32, args=CONVNEXT_SPEC.args, weights=str(fitted["plain"]))
    network, trained = build_backbone(spec, 5), load_network(fitted["plain"]).backbone
    assert all((value == trained.state_dict()[name]).all() for name, value in network.state_dict().items())


def test_a_distilled_one_does_not_teach(fitted, source, tmp_path):
    module = ScaledStudent(5, student=CONVNEXT_SPEC, teacher_ckpt=str(fitted["student"]))
    with pytest.raises(CheckpointError, match="holds a ScaledStudent, not a teacher"):
        trainer(tmp_path).fit(module, datamodule=source)


def test_a_student_that_was_fitted_alone_may_teach_and_is_not_called_distilled(source, tmp_path):
    fit = trainer(tmp_path)
    fit.fit(student(source, objective=Objective({"labels": CrossEntropy()})), datamodule=source)
    fit.save_checkpoint(tmp_path / "alone.ckpt")
    assert load_network(tmp_path / "alone.ckpt").info.distilled is False
    fit = trainer(tmp_path)
    fit.fit(student(source, tmp_path / "alone.ckpt"), datamodule=source)
    assert fit.global_step > 0


@pytest.mark.parametrize(
    "path, expected",
    [
        ("helpers.subclasses.SmoothTeacher", False),
        ("helpers.subclasses.ScaledStudent", True),
        ("kd_convnext.DistillModule", True),
        ("kd_convnext.TeacherModule", False),
    ],
)
def test_is_planned(path, expected):
    with trusting(["--trust", "helpers"]):
        assert is_distilling(path) is expected


@pytest.mark.slow
def test_by_the_command_line(tiny_manifest, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = {
        "class_path": "helpers.subclasses.SmoothTeacher",
        "init_args": {"smoothing": 0.3, "backbone": {"name": SWIN_SPEC.name, "image_size": 32, "args": SWIN_SPEC.args}},
    }
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"model": model}))
    words = [f"--data.manifest={tiny_manifest}", "--data.cache_dir=cache", *TINY, "--name=own"]
    assert main(["fit", "--trust", "helpers", "--config", "own.yaml", *words]) == 0, capsys.readouterr().err
    (run,) = (tmp_path / "runs" / "own").iterdir()
    best = run / "checkpoints" / "best.ckpt"
    assert main(["test", "--trust=helpers", "--config", str(run / "config.yaml"), "--ckpt_path", str(best)]) == 0
    assert json.loads((run / "metrics.json").read_text())["test/accuracy"] >= 0
    assert (
        main(["test", f"--data.manifest={tiny_manifest}", *TINY[:6], "--model=TeacherModule", "--ckpt_path", str(best)])
        == 2
    )
    assert "SmoothTeacher, a class of another package" in capsys.readouterr().err
    assert main(["export", "--ckpt_path", str(best), "--format", "torch", "--out", "out"]) == 0
    photo = str(tiny_manifest.parent / "0_0_0.png")
    assert main(["classify", photo, "--ckpt_path", str(best), "--out", "answers"]) == 0
