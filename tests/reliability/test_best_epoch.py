"""best.ckpt is the network whose score it is, by the score that was asked for, wherever the folder lies."""

import numpy as np
import pandas as pd
import pytest
import torch
from helpers.command_line import TINY, convnext
from lightning.pytorch import Callback

from kd_convnext.checkpoints.format import read_checkpoint
from kd_convnext.cli import main
from kd_convnext.errors import CheckpointError
from kd_convnext.evaluation.direction import best_is
from kd_convnext.training.checkpoint_files import WholeFiles

FIT = [
    "fit",
    "--config",
    "configs/small_cpu/convnext.yaml",
    *TINY,
    *convnext("backbone"),
    "--checkpoint.last_share=1e9",
]


@pytest.fixture
def fit(tiny_manifest, tiny_cache, tmp_path):
    """Fits into the folder `run` and returns the exit code."""
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    return lambda *words: main([*FIT, *data, f"--trainer.default_root_dir={tmp_path / 'run'}", *words])


def load(folder, name="best.ckpt"):
    return torch.load(folder / "checkpoints" / name, map_location="cpu", weights_only=True)


class Falling(Callback):
    """Gives validation a score that falls, or one that is no number."""

    values = (3.0, 1.0, 2.0)

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("val/made_loss", self.values[trainer.current_epoch])


class NotANumber(Falling):
    values = (float("nan"), 0.5, float("nan"))


@pytest.fixture
def scored(monkeypatch):
    """Adds a callback of this file to the fit."""
    from kd_convnext.training import command

    def add(kind):
        real = command.CurveFigures
        monkeypatch.setattr(command, "CurveFigures", lambda: type("Both", (kind, real), {})())

    return add


@pytest.mark.parametrize(
    ("monitor", "mode"),
    [("val/loss", "min"), ("val/lesion/ece", "min"), ("train/loss_soft", "min"), ("val/f1_macro", "max"), ("", "max")],
)
def test_the_way_is_known_by_the_name(monitor, mode):
    assert best_is(monitor) == mode


def test_the_lowest_loss_is_the_best(fit, scored, tmp_path):
    scored(Falling)
    assert fit("--checkpoint.monitor=val/made_loss", "--trainer.max_epochs=3") == 0
    assert load(tmp_path / "run")["epoch"] == 1


def test_the_best_epoch_is_that_of_the_smoothed_score_of_lesions(fit, tmp_path):
    words = ["--config", "configs/early_stopping.yaml", "--trainer.max_epochs=6", "--trainer.limit_train_batches=3"]
    assert fit(*words, "--model.optim.lr=1e-2") == 0
    curve = pd.read_csv(tmp_path / "run" / "metrics.csv")
    scores = curve["val/lesion/f1_macro"].dropna().to_numpy()
    smooth = [scores[max(0, end - 3) : end].mean() for end in range(1, 7)]
    assert curve["val/f1_macro_smooth"].dropna().tolist() == pytest.approx(smooth, abs=1e-6)
    assert load(tmp_path / "run")["epoch"] == int(np.argmax(np.round(smooth, 6)))


@pytest.mark.parametrize("averaged", [False, True])
def test_a_fit_without_a_better_smoothed_score_ends_early(averaged, fit, tmp_path, capsys):
    average = ["--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"] if averaged else []
    words = [*average, "--config", "configs/early_stopping.yaml", "--trainer.max_epochs=30"]
    assert fit(*words, "--model.optim.lr=1e-12") == 0
    # The first epoch is the best, and ten more are waited for.
    assert len(pd.read_csv(tmp_path / "run" / "metrics.csv")["val/f1_macro"].dropna()) == 11
    assert load(tmp_path / "run")["epoch"] == 0 and load(tmp_path / "run", "last.ckpt")["epoch"] == 10
    assert ("current_model_state" in load(tmp_path / "run", "last.ckpt")) == averaged


def test_a_way_against_the_name_is_said(fit, scored, tmp_path, capsys):
    scored(Falling)
    assert fit("--checkpoint.monitor=val/made_loss", "--checkpoint.mode=max", "--trainer.max_epochs=2") == 0
    assert load(tmp_path / "run")["epoch"] == 0
    assert "maximum of val/made_loss" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["min", "max"])
def test_what_is_no_number_is_never_the_best(mode, fit, scored, tmp_path, capsys):
    scored(NotANumber)
    words = ["--checkpoint.monitor=val/made_loss", f"--checkpoint.mode={mode}", "--trainer.num_sanity_val_steps=0"]
    assert fit(*words, "--trainer.max_epochs=3") == 0
    assert load(tmp_path / "run")["epoch"] == 1
    assert "nan in epoch 0: not kept" in capsys.readouterr().out


@pytest.mark.parametrize("sanity", [0, 2])
def test_a_misspelt_score_is_refused(sanity, fit, tmp_path, capsys):
    assert fit("--checkpoint.monitor=val/f1_makro", f"--trainer.num_sanity_val_steps={sanity}") == 2
    error = capsys.readouterr().err
    assert "--checkpoint.monitor" in error and "val/f1_macro" in error and "Traceback" not in error
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


@pytest.mark.parametrize("option", ["--trainer.limit_val_batches=0", "--trainer.check_val_every_n_epoch=5"])
def test_without_validation_the_end_is_kept_and_said(option, fit, tmp_path, capsys):
    assert fit(option, "--trainer.max_epochs=2") == 0
    assert load(tmp_path / "run")["global_step"] == 4
    assert "Warning: no epoch is validated" in capsys.readouterr().out
    for name, value in load(tmp_path / "run", "last.ckpt")["state_dict"].items():
        assert torch.equal(load(tmp_path / "run")["state_dict"][name], value)


def test_a_moved_folder_keeps_its_best(fit, scored, tmp_path):
    scored(Falling)
    words = ["--checkpoint.monitor=val/made_loss"]
    assert fit(*words, "--trainer.max_epochs=2") == 0
    before = (tmp_path / "run" / "checkpoints" / "best.ckpt").read_bytes()
    assert str(tmp_path).encode() not in (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes()
    moved = tmp_path / "elsewhere" / "run"
    moved.parent.mkdir()
    (tmp_path / "run").rename(moved)
    last = str(moved / "checkpoints" / "last.ckpt")
    assert main(["fit", "--config", str(moved / "config.yaml"), "--ckpt_path", last, "--trainer.max_epochs=3"]) == 0
    assert (moved / "checkpoints" / "best.ckpt").read_bytes() == before
    assert load(moved, "last.ckpt")["epoch"] == 2


def test_a_score_is_forgotten_with_its_file(fit, scored, tmp_path):
    scored(Falling)
    assert fit("--checkpoint.monitor=val/made_loss", "--trainer.max_epochs=2") == 0
    run = tmp_path / "run"
    (run / "checkpoints" / "best.ckpt").unlink()
    last = str(run / "checkpoints" / "last.ckpt")
    assert main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", last, "--trainer.max_epochs=3"]) == 0
    assert load(run)["epoch"] == 2


def test_averaged_weights_are_kept_where_they_were_judged(fit, tmp_path):
    ema = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9"]
    assert fit(*ema, "--trainer.max_epochs=1") == 0
    best, last = load(tmp_path / "run"), load(tmp_path / "run", "last.ckpt")
    apart = [
        name for name, value in last["current_model_state"].items() if not torch.equal(value, last["state_dict"][name])
    ]
    assert apart, "the average is the network itself: nothing is tested"
    for name, value in best["state_dict"].items():
        assert torch.equal(value, last["state_dict"][name]), name


def test_a_fit_with_averaging_goes_on_as_if_unbroken(fit, tmp_path):
    words = ["--trainer.callbacks+=EMAWeightAveraging", "--trainer.callbacks.decay=0.9", "--checkpoint.last_share=0"]
    schedule = ["--model.optim.schedule=constant"]
    assert fit(*words, *schedule, "--trainer.max_epochs=2") == 0
    run, last = tmp_path / "run", str(tmp_path / "run" / "checkpoints" / "last.ckpt")
    assert main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path", last, "--trainer.max_epochs=3"]) == 0
    resumed = load(run, "last.ckpt")
    run.rename(tmp_path / "broken")
    assert fit(*words, *schedule, "--trainer.max_epochs=3") == 0
    for name, value in load(run, "last.ckpt")["current_model_state"].items():
        assert torch.equal(resumed["current_model_state"][name], value), name


def test_nothing_is_lost_where_the_newer_one_cannot_be_written(tmp_path, monkeypatch):
    import os

    from kd_convnext.errors import ConfigError

    path = tmp_path / "last.ckpt"
    WholeFiles().save_checkpoint({"epoch": 1}, path)

    def full(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match=r"last\.ckpt: cannot be written .No space left"):
        WholeFiles().save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True) == {"epoch": 1}
    assert [found.name for found in tmp_path.iterdir()] == ["last.ckpt"]


def test_no_bit_of_the_weights_changes_unnoticed(tiny_run):
    path = next(tiny_run.rglob("best.ckpt")) if tiny_run.is_dir() else tiny_run
    whole = path.read_bytes()
    state = torch.load(path, weights_only=True)["state_dict"]
    try:
        for value in (value for value in state.values() if value.numel() > 50):
            place = whole.index(value.contiguous().numpy().tobytes())
            flipped = bytearray(whole)
            flipped[place + 3] ^= 1
            path.write_bytes(flipped)
            with pytest.raises(CheckpointError, match="damaged"):
                read_checkpoint(path)
    finally:
        path.write_bytes(whole)
    read_checkpoint(path)


def test_a_grey_network_is_written_and_read(fit, tmp_path):
    """Its mean is one number that was spread over one channel: a tensor of stride 0."""
    assert fit("--data.in_chans=1", "--model.backbone.in_chans=1") == 0
    assert read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")


def test_weights_that_were_exchanged_are_noticed(fit, tmp_path):
    assert fit() == 0
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    found = torch.load(path, weights_only=True)
    next(iter(found["state_dict"].values())).add_(1)
    torch.save(found, path)
    with pytest.raises(CheckpointError, match="SHA-256"):
        read_checkpoint(path)
    with pytest.warns(UserWarning, match="SHA-256"):
        read_checkpoint(path, may_be_edited=True)


def test_what_a_network_answers_with_cannot_be_changed_unnoticed(fit, tmp_path, tiny_manifest, capsys):
    assert fit() == 0
    path = tmp_path / "run" / "checkpoints" / "best.ckpt"
    whole, photo = path.read_bytes(), str(next(tiny_manifest.parent.glob("*.png")))

    def swapped(names):
        names[:2] = names[1::-1]

    edits = {
        "the order of its classes": lambda own, _: [swapped(own["class_names"]), swapped(own["card"]["class_names"])],
        "the classes of its card alone": lambda own, _: swapped(own["card"]["class_names"]),
        "fewer classes": lambda own, _: [own["class_names"].pop(), own["card"]["class_names"].pop()],
        "colours": lambda own, _: own["card"].update(in_chans=1),
        "a size": lambda own, _: own["card"].update(image_size=10**9),
        "what it has seen": lambda own, _: own["card"].update(seen_groups=own["card"]["seen_groups"][:1]),
        "a layer": lambda _, network: network.update(args={**network["args"], "conv_bias": False}),
    }
    for harm in ({"hyper_parameters": ["no table"]}, {"hyper_parameters": "text"}):
        path.write_bytes(whole)
        torch.save(load(tmp_path / "run") | harm, path)
        assert main(["classify", photo, f"--out={tmp_path / 'out'}", f"--ckpt_path={path}"]) == 2
        assert (error := capsys.readouterr().err).count("\n") == 1 and str(path) in error
    for kept in (True, False):  # the hash, which checkpoints of earlier versions lack
        for name, edit in edits.items():
            path.write_bytes(whole)
            found = load(tmp_path / "run")
            edit(found["kd_convnext"], found["hyper_parameters"]["backbone"])
            if not kept:
                del found["kd_convnext"]["facts_sha256"]
            torch.save(found, path)
            if not kept and name not in ("the classes of its card alone", "fewer classes", "a size"):
                continue  # nothing contradicts it
            for words in (["classify", photo, f"--out={tmp_path / 'out'}"], ["calibrate"], ["publish", "--out=never"]):
                assert main([*words, f"--ckpt_path={path}"]) == 2, (name, words)
                error = capsys.readouterr().err
                assert str(path) in error and error.count("error: ") == 1, (name, error)
