import pytest
import torch
from helpers.tiny import data, student, teacher, trainer
from lightning.pytorch import Callback
from sklearn.metrics import f1_score

from kd_convnext.modules.epoch_tally import EpochTally
from kd_convnext.training.progress_bar import DataWaitBar


@pytest.fixture
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


def test_an_epoch_is_the_mean_over_its_images_and_metrics_are_of_all_answers():
    torch.manual_seed(0)
    tally, losses, logits, labels = EpochTally(3), [], [], []
    for count in (4, 4, 1):
        losses.append(torch.rand(count))
        logits.append(torch.randn(count, 3))
        labels.append(torch.randint(0, 3, (count,)))
        tally.add({"train/loss": losses[-1].mean()}, logits[-1], labels[-1])
    assert (len(tally), tally.samples) == (3, 9)
    assert float(tally.means()["train/loss"]) == pytest.approx(float(torch.cat(losses).mean()))
    expected = f1_score(
        torch.cat(labels), torch.cat(logits).argmax(1), average="macro", labels=range(3), zero_division=0
    )
    assert float(tally.metrics()["train/f1_macro"]) == pytest.approx(expected)
    assert float(tally.metrics()["train/f1_macro"]) == pytest.approx(expected)  # counted once, not twice
    tally.clear()
    assert len(tally) == tally.samples == 0


def test_a_fit_logs_the_means_of_its_steps_once_an_epoch(source, tiny_run, tmp_path):
    module, seen = student(source, tiny_run), []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((float(outputs["loss"]), len(batch["label"])))
            assert float(pl_module.latest_loss) == float(outputs["loss"])

    fit = trainer(tmp_path, epochs=1, callbacks=[Watch()])
    fit.fit(module, datamodule=source)
    images = sum(count for _, count in seen)
    expected = sum(loss * count for loss, count in seen) / images
    assert float(fit.callback_metrics["train/loss"]) == pytest.approx(expected, rel=1e-5)
    terms = {"train/loss_feature", "train/loss_soft", "train/loss_soft_kl", "train/loss_focal"}
    assert terms | {"train/accuracy"} <= set(fit.callback_metrics)
    assert 0 <= fit.callback_metrics["train/loss_soft_kl"] < fit.callback_metrics["train/loss_soft"]


def test_loggers_get_the_loss_of_a_step_as_often_as_asked_and_the_bar_always(source, tmp_path):
    logged, shown = [], []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            logged.append("train/loss_step" in trainer.logged_metrics)
            bar._looked = 0.0
            shown.append(bar.get_metrics(trainer, pl_module)["train/loss_step"] == float(outputs["loss"]))

    bar = DataWaitBar()
    options = {"log_every_n_steps": 2, "limit_train_batches": 3, "enable_progress_bar": True}
    fit = trainer(tmp_path, epochs=1, callbacks=[bar, Watch()], **options)
    fit.fit(teacher(source), datamodule=source)
    assert shown == [True] * 3
    assert logged == [False, True, True]
