"""What helps to choose the best epoch on few validation lesions: a smoothed score, and mirror images."""

import lightning.pytorch as pl
import pytest
import torch
from helpers.tiny import data, teacher, trainer

NAME = "val/f1_macro_smooth"


class Scores(pl.Callback):
    """Keeps the scores of each epoch."""

    def __init__(self):
        self.seen = []

    def on_validation_end(self, trainer, pl_module):
        if not trainer.sanity_checking:
            metrics = trainer.callback_metrics
            self.seen.append((float(metrics["val/lesion/f1_macro"]), float(metrics[NAME])))


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


def scores(source, folder, epochs, ckpt=None):
    found = Scores()
    fit = trainer(folder, epochs=epochs, callbacks=[found], num_sanity_val_steps=1)
    fit.fit(teacher(source, optim={"lr": 1e-2}), datamodule=source, ckpt_path=ckpt)
    return fit, found.seen


def test_the_smoothed_score_is_the_mean_of_three_epochs_also_after_a_resume(source, tmp_path):
    _, whole = scores(source, tmp_path, 5)
    plain = [score for score, _ in whole]
    assert len(set(plain)) > 1
    expected = [sum(plain[max(0, end - 3) : end]) / min(3, end) for end in range(1, 6)]
    assert [smooth for _, smooth in whole] == pytest.approx(expected, abs=1e-6)
    fit, first = scores(source, tmp_path, 3)
    fit.save_checkpoint(tmp_path / "three.ckpt")
    _, rest = scores(source, tmp_path, 5, tmp_path / "three.ckpt")
    assert [*first, *rest] == whole
    # Judged once more, by itself, an epoch has no earlier ones.
    alone = trainer(tmp_path)
    alone.validate(fit.lightning_module, datamodule=source, verbose=False)
    assert NAME not in alone.callback_metrics and "val/f1_macro" in alone.callback_metrics


def test_a_mirrored_validation_averages_four_views_within_a_fit_alone(source, tmp_path):
    module = teacher(source, mirrored_validation=True)
    fit = trainer(tmp_path, limit_train_batches=1)
    fit.fit(module, datamodule=source)
    judged = module.evaluation
    assert module.hparams["mirrored_validation"] is True
    module.eval()
    batch = next(iter(source.val_dataloader()))
    with torch.no_grad():
        views = [batch["image"], batch["image"].flip(3), batch["image"].flip(2), batch["image"].flip((2, 3))]
        expected = torch.stack([module(view).float() for view in views]).mean(0).softmax(1)
    place = {int(index): row for row, index in enumerate(judged.index)}
    found = torch.stack([torch.from_numpy(judged.probabilities[place[int(index)]]) for index in batch["index"]])
    torch.testing.assert_close(found.float(), expected, atol=1e-5, rtol=1e-4)
    fit.validate(module, datamodule=source, verbose=False)
    plain = torch.from_numpy(module.evaluation.probabilities)
    assert not torch.allclose(plain, torch.from_numpy(judged.probabilities), atol=1e-5)
