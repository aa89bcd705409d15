"""best.ckpt and last.ckpt: what is in them, when they are written, and that a fit resumes from the newest."""

from types import SimpleNamespace

import pytest
import torch
from helpers import tiny
from helpers.command_line import TINY, convnext
from lightning.pytorch import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO

from kd_convnext.cli import main
from kd_convnext.training import command as training
from kd_convnext.training.checkpoint_files import BackgroundWriter
from kd_convnext.training.checkpointing import RunCheckpoint
from kd_convnext.training.command import CHECKPOINT_DEFAULTS


class Scores(Callback):
    """Gives validation the scores that a test wants."""

    def __init__(self, *scores):
        self.scores = scores

    def on_validation_epoch_end(self, trainer, pl_module):
        pl_module.log("score", self.scores[trainer.current_epoch])


def fit(folder, manifest, cache, epochs, scores, ckpt_path=None, last_share=1e9, **options):
    source = tiny.data(manifest, cache)
    module = tiny.teacher(source)
    settings = {**CHECKPOINT_DEFAULTS, "monitor": "score", "last_share": last_share}
    checkpoint = RunCheckpoint(dirpath=folder / "checkpoints", **settings)
    callbacks = [checkpoint, *options.pop("callbacks", [])]
    settings = {"enable_checkpointing": True, "plugins": [BackgroundWriter()], "limit_train_batches": 2, **options}
    trainer = tiny.trainer(folder, epochs, callbacks=[Scores(*scores), *callbacks], **settings)
    trainer.fit(module, datamodule=source, ckpt_path=ckpt_path)
    return module, checkpoint


def read(folder, name):
    return torch.load(folder / "checkpoints" / name, weights_only=True, map_location="cpu")


def test_last_is_the_newest_and_best_is_the_best(tiny_manifest, tiny_cache, tmp_path):
    module, checkpoint = fit(tmp_path, tiny_manifest, tiny_cache, 3, (0.1, 0.9, 0.2))
    best, last = read(tmp_path, "best.ckpt"), read(tmp_path, "last.ckpt")
    assert (best["epoch"], last["epoch"]) == (1, 2)
    assert "optimizer_states" not in best and "optimizer_states" in last
    assert checkpoint.best_model_path.endswith("best.ckpt") and checkpoint.last_model_path.endswith("last.ckpt")
    for name, value in module.state_dict().items():
        assert torch.equal(last["state_dict"][name], value), name


def test_the_best_is_nothing_to_resume_from(tiny_manifest, tiny_cache, tmp_path, capsys):
    fit(tmp_path, tiny_manifest, tiny_cache, 1, (0.1,))
    words = ["--config", "configs/small_cpu/convnext.yaml", f"--data.manifest={tiny_manifest}"]
    assert main(["fit", *words, "--ckpt_path", str(tmp_path / "checkpoints" / "best.ckpt")]) == 2
    assert "last.ckpt" in capsys.readouterr().err


def test_a_fit_resumed_from_the_newest_ends_where_an_unbroken_one_does(tiny_manifest, tiny_cache, tmp_path):
    scores = (0.9, 0.1, 0.2, 0.3)
    whole, _ = fit(tmp_path / "whole", tiny_manifest, tiny_cache, 4, scores)
    for last_share in (1e9, 0.0):  # written after an epoch, and at the end of the fit
        folder = tmp_path / f"{last_share}"
        fit(folder, tiny_manifest, tiny_cache, 2, scores, last_share=last_share)
        last = str(folder / "checkpoints" / "last.ckpt")
        resumed, checkpoint = fit(folder, tiny_manifest, tiny_cache, 4, scores, ckpt_path=last)
        for name, value in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], value), name
        assert float(checkpoint.best_model_score) == torch.tensor(0.9)
        assert read(folder, "best.ckpt")["epoch"] == 0


def test_a_finished_epoch_is_resumed_by_steps(tiny_manifest, tiny_cache, tmp_path):
    scores = (0.1, 0.2, 0.3, 0.4)
    fit(tmp_path, tiny_manifest, tiny_cache, 2, scores)
    last = str(tmp_path / "checkpoints" / "last.ckpt")
    module, _ = fit(tmp_path, tiny_manifest, tiny_cache, -1, scores, ckpt_path=last, max_steps=7)
    assert module.trainer.global_step == 7 and not len(module._tally)


def test_the_best_epoch_that_is_said_is_that_of_the_best_checkpoint(tiny_manifest, tiny_cache, tmp_path, capsys):
    """Not that of the best macro F1, where another number chooses; nor one of before a resume."""
    config = ["--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone"), "--trainer.max_epochs=4"]
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    options = ["--checkpoint.monitor=val/loss", "--model.optim.lr=0.01"]
    for mode in ("min", "max"):
        folder = tmp_path / mode
        run = [*config, *data, *options, f"--checkpoint.mode={mode}", f"--trainer.default_root_dir={folder}"]
        assert main(["fit", *run]) == 0
        best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
        assert f"Best epoch {best}: " in capsys.readouterr().out
    assert best < 3  # the loss fell: the highest, asked for last, is behind
    longer = ["--trainer.max_epochs=5", f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"]
    assert main(["fit", *run, *longer]) == 0
    assert "No epoch since the fit went on is better" in " ".join(capsys.readouterr().out.split())


def test_what_another_callback_keeps_chooses_nothing(tiny_manifest, tiny_cache, tmp_path, capsys):
    config = ["--config", "configs/small_cpu/convnext.yaml", *TINY, *convnext("backbone"), "--trainer.max_epochs=2"]
    data = [f"--data.manifest={tiny_manifest}", f"--data.cache_dir={tiny_cache}"]
    other = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.monitor=val/loss"]
    run = [*config, *data, *other, f"--trainer.default_root_dir={tmp_path / 'run'}", "--model.optim.lr=0.01"]
    # Higher losses are worse: by the other callback epoch 1 would be the best.
    assert main(["fit", *run, "--checkpoint.monitor=val/loss", "--checkpoint.mode=max"]) == 0
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["epoch"]
    assert best == 0 and "Best epoch 0: " in capsys.readouterr().out
    run = [*config, *data, f"--trainer.default_root_dir={tmp_path / 'train'}", "--checkpoint.monitor=train/loss"]
    assert main(["fit", *run]) == 0  # known only after validation: nothing is said of another epoch
    assert "No epoch since the fit went on" not in " ".join(capsys.readouterr().out.split())


def test_the_newest_is_not_written_more_often_than_asked(tiny_manifest, tiny_cache, tmp_path):
    written = []

    class Watch(BackgroundWriter):
        def save_checkpoint(self, checkpoint, path, *args, **kwargs):
            written.append((path.rsplit("/", 1)[-1], checkpoint["global_step"]))
            super().save_checkpoint(checkpoint, path, *args, **kwargs)

    fit(tmp_path, tiny_manifest, tiny_cache, 4, (0.5, 0.1, 0.6, 0.2), last_share=0.0, plugins=[Watch()])
    assert written == [("best.ckpt", 2), ("last.ckpt", 2), ("best.ckpt", 6), ("last.ckpt", 8)]


@pytest.mark.parametrize(("kept", "expected"), [(False, 1), ("all", 0)])
def test_a_logger_that_keeps_checkpoints_finds_them_written(kept, expected):
    logger = SimpleNamespace(_log_model=kept)
    found = training._plugins(None, "auto", [logger])
    assert sum(isinstance(plugin, BackgroundWriter) for plugin in found) == expected


def test_what_is_written_is_the_state_of_the_call(tmp_path):
    writer, tensor = BackgroundWriter(TorchCheckpointIO()), torch.ones(1000)
    writer.save_checkpoint({"tensor": tensor}, tmp_path / "one.ckpt")
    tensor.zero_()
    writer.save_checkpoint({"tensor": tensor}, tmp_path / "two.ckpt")
    assert torch.load(tmp_path / "one.ckpt", weights_only=True)["tensor"].sum() == 1000  # the first is finished
    writer.teardown()
    assert torch.load(tmp_path / "two.ckpt", weights_only=True)["tensor"].sum() == 0


def test_what_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").touch()
    writer = BackgroundWriter(TorchCheckpointIO())
    with pytest.raises(OSError, match="file"):  # by the call itself where the thread is quick, else by the next
        writer.save_checkpoint({"tensor": torch.ones(3)}, tmp_path / "file" / "one.ckpt")
        writer.teardown()


def test_files_are_whole_when_the_fit_ends_for_others(tiny_manifest, tiny_cache, tmp_path):
    class Reader(Callback):
        def on_fit_end(self, trainer, pl_module):
            self.epochs = read(tmp_path, "best.ckpt")["epoch"], read(tmp_path, "last.ckpt")["epoch"]

    reader = Reader()
    fit(tmp_path, tiny_manifest, tiny_cache, 2, (0.1, 0.2), callbacks=[reader])
    assert reader.epochs == (1, 1)
