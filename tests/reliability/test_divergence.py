"""A fit that diverges stops and says where; a network of NaN answers nobody."""

import pytest
import torch
from helpers.command_line import TINY, convnext

from kd_convnext.cli import main
from kd_convnext.modules.classifier import ClassifierModule
from kd_convnext.modules.teacher import TeacherModule

FIT = ["fit", "--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone")]


@pytest.fixture
def fit(tiny_manifest, tiny_cache, tmp_path):
    """Fits into the folder `run` and returns the exit code."""
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    return lambda *words: main([*FIT, *data, f"--trainer.default_root_dir={tmp_path / 'run'}", *words])


def test_an_absurd_rate_is_said_with_the_place(fit, tmp_path, capsys):
    rate = ["--model.optim.lr=1e8", "--model.optim.warmup_epochs=0", "--trainer.limit_train_batches=4"]
    assert fit(*rate, "--trainer.max_epochs=3") == 2
    error = capsys.readouterr().err
    assert "epoch" in error and "train/loss is not finite in step" in error and ".png" in error
    assert "--model.optim.lr" in error and "Traceback" not in error
    best = tmp_path / "run" / "checkpoints" / "best.ckpt"
    assert not best.exists() or all(
        v.isfinite().all() for v in torch.load(best, weights_only=True)["state_dict"].values()
    )


def test_weights_are_looked_at_before_they_are_judged(fit, tmp_path, capsys, monkeypatch):
    real = TeacherModule.optimizer_step

    def spoiled(self, epoch, *args, **kwargs):
        real(self, epoch, *args, **kwargs)
        if self.global_step >= 3:  # the last step of the second epoch: no loss has seen it
            with torch.no_grad():
                next(self.parameters()).fill_(float("inf"))

    monkeypatch.setattr(TeacherModule, "optimizer_step", spoiled)
    assert fit("--trainer.max_epochs=2", "--checkpoint.last_share=1e9") == 2
    error = capsys.readouterr().err
    assert "epoch 1" in error and "tensors of weights are not finite" in error
    for name in ("best.ckpt", "last.ckpt"):
        kept = torch.load(tmp_path / "run" / "checkpoints" / name, weights_only=True)
        assert kept["epoch"] == 0 and all(value.isfinite().all() for value in kept["state_dict"].values())


def test_a_term_is_named(fit, capsys, monkeypatch):
    real = ClassifierModule.log_training

    def spoiled(self, loss, logits, labels, terms=None):
        real(self, loss, logits, labels, {"soft": loss * float("nan")})

    monkeypatch.setattr(ClassifierModule, "log_training", spoiled)
    assert fit() == 2
    assert "train/loss_soft is not finite in step 1" in capsys.readouterr().err


def test_a_network_of_nan_is_refused_by_its_readers(fit, tmp_path, tiny_manifest, capsys):
    assert fit() == 0
    run = tmp_path / "run"
    best = run / "checkpoints" / "best.ckpt"
    found = torch.load(best, weights_only=True)
    del found["kd_convnext"]["weights_sha256"]  # as earlier versions wrote them
    for value in found["state_dict"].values():
        value.fill_(float("nan"))
    torch.save(found, best)
    photo = next(tiny_manifest.parent.glob("*.png"))
    ckpt = ["--ckpt_path", str(best)]
    config = ["--config", str(run / "config.yaml")]
    commands = [["test", *config, *ckpt], ["validate", *config, *ckpt], ["predict", *config, *ckpt]]
    commands += [["classify", str(photo), *ckpt, "--out", str(tmp_path / "out")], ["calibrate", *ckpt]]
    commands += [["export", *ckpt, "--out", str(tmp_path / "model.onnx")], ["card", *ckpt]]
    for words in commands:
        capsys.readouterr()
        assert main(words) == 2, words
        assert "not finite" in capsys.readouterr().err, words
