"""Averages of the weights at the ends of the last epochs."""

import pytest
import torch
from helpers import tiny
from lightning.pytorch import Callback
from torch.optim.swa_utils import AveragedModel

from kd_convnext.errors import ConfigError
from kd_convnext.losses import CrossEntropy, FeatureMaps, Objective
from kd_convnext.training.checkpointing import RunCheckpoint
from kd_convnext.training.command import CHECKPOINT_DEFAULTS
from kd_convnext.training.epoch_averaging import EpochAveraging


class Seen(Callback):
    """Keeps the weights at each epoch's end, and those that validation judges."""

    def __init__(self):
        self.ends, self.judged = [], []

    @staticmethod
    def weights(module):
        return torch.cat([value.detach().double().flatten() for value in module.parameters()])

    def on_train_epoch_end(self, trainer, pl_module):
        self.ends.append(self.weights(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, *_):
        if len(self.judged) == trainer.current_epoch:
            self.judged.append(self.weights(pl_module))


@pytest.fixture
def fit(tiny_manifest, tiny_cache, tiny_run, tmp_path):
    source = tiny.data(tiny_manifest, tiny_cache)

    def fitted(epochs, ckpt=None, *more, **others):
        objective = Objective({"labels": CrossEntropy(), "maps": FeatureMaps()})
        module, seen = tiny.student(source, tiny_run, objective=objective), Seen()
        torch.manual_seed(3)
        kept = RunCheckpoint(dirpath=tmp_path, **{**CHECKPOINT_DEFAULTS, "monitor": "epoch", "mode": "max"})
        options = {"enable_checkpointing": True, "limit_train_batches": 2, "limit_val_batches": 1, **others}
        callbacks = [EpochAveraging(1), seen, kept, *more]
        tiny.trainer(tmp_path, epochs, callbacks=callbacks, **options).fit(module, datamodule=source, ckpt_path=ckpt)
        return module, seen

    return fitted


def test_validation_judges_and_the_end_keeps_the_mean_of_the_ends(fit, tmp_path):
    module, seen = fit(4)
    assert len(seen.ends) == len(seen.judged) == 4 and not torch.equal(seen.ends[1], seen.ends[3])
    means = [seen.ends[0], seen.ends[1], (seen.ends[1] + seen.ends[2]) / 2, sum(seen.ends[1:]) / 3]
    for found, mean in zip([*seen.judged, Seen.weights(module)], [*means, means[-1]], strict=True):
        torch.testing.assert_close(found, mean, atol=1e-6, rtol=1e-5)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, best[name]) for name, value in module.state_dict().items())


def test_a_validation_within_an_epoch_judges_what_was_trained(fit):
    """And none judges the weights that the fit began with."""

    class Steps(Callback):
        trained, judged = [], []

        def on_train_batch_end(self, trainer, pl_module, *_):
            self.trained.append(Seen.weights(pl_module))

        def on_validation_start(self, trainer, pl_module):
            self.judged.append(None)

        def on_validation_batch_start(self, trainer, pl_module, *_):
            self.judged[-1] = Seen.weights(pl_module)

    fit(3, None, Steps(), val_check_interval=1)
    assert len(Steps.judged) == len(Steps.trained) == 6
    expected = [*Steps.trained[:4], Steps.trained[3], (Steps.trained[3] + Steps.trained[5]) / 2]
    for found, mean in zip(Steps.judged, expected, strict=True):
        torch.testing.assert_close(found, mean, atol=1e-6, rtol=1e-5)


def test_until_there_is_an_average_the_network_is_copied_only_where_it_is_looked_at(fit, monkeypatch, tmp_path):
    copied, steps = [], []
    update = AveragedModel.update_parameters

    class Step(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            steps.append(Seen.weights(pl_module))
            trainer.save_checkpoint(tmp_path / "within.ckpt") if len(steps) == 2 else None

    monkeypatch.setattr(AveragedModel, "update_parameters", lambda *args: (copied.append(len(steps)), update(*args)))
    module = fit(1, None, Step(), limit_train_batches=4, limit_val_batches=0, max_steps=3)[0]
    assert set(copied) == {2, 3}
    kept = torch.load(tmp_path / "within.ckpt", weights_only=True)["state_dict"]
    names = [name for name, _ in module.named_parameters()]
    assert torch.equal(torch.cat([kept[name].double().flatten() for name in names]), steps[1])
    assert torch.equal(Seen.weights(module), steps[-1])


def test_a_resume_goes_on_exactly(fit, tmp_path):
    whole = fit(4)[0].state_dict()
    fit(3)
    resumed = fit(4, tmp_path / "last.ckpt")[0].state_dict()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_a_negative_epoch_is_refused():
    with pytest.raises(ConfigError, match="start_epoch"):
        EpochAveraging(-1)
