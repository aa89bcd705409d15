"""The moving average of weights: its decay rises with the steps, and the best checkpoint holds it."""

import pytest
import torch
from helpers import tiny
from lightning.pytorch import Callback

from kd_convnext.errors import ConfigError
from kd_convnext.training.checkpointing import RunCheckpoint
from kd_convnext.training.command import CHECKPOINT_DEFAULTS
from kd_convnext.training.moving_averaging import MovingAveraging


class Weights(Callback):
    """Keeps the trained head after every step."""

    def __init__(self):
        self.after = []

    def on_train_batch_end(self, trainer, module, *_):
        self.after.append(module.classifier.head_parameters()[0].detach().double().clone())


@pytest.mark.parametrize("decay", [0.3, 0.99])
def test_the_best_checkpoint_holds_the_average(tiny_manifest, tiny_cache, tmp_path, decay):
    source = tiny.data(tiny_manifest, tiny_cache)
    module = tiny.teacher(source)
    callbacks = [seen := Weights(), MovingAveraging(decay), RunCheckpoint(dirpath=tmp_path, **CHECKPOINT_DEFAULTS)]
    fit = tiny.trainer(tmp_path, 3, limit_train_batches=2, enable_checkpointing=True, callbacks=callbacks)
    fit.fit(module, datamodule=source)
    average = seen.after[0]
    averages = []
    for step, value in enumerate(seen.after):
        kept = min(decay, (1 + step) / (10 + step))
        average = kept * average + (1 - kept) * value
        averages.append(average)
    best = torch.load(tmp_path / "best.ckpt", weights_only=True)
    name = next(name for name, value in module.named_parameters() if value is module.classifier.head_parameters()[0])
    expected = averages[2 * best["epoch"] + 1]
    torch.testing.assert_close(best["state_dict"][name].double(), expected, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(module.state_dict()[name].double(), averages[-1], rtol=1e-5, atol=1e-7)


def test_a_short_fit_forgets_its_start():
    rising, constant = 1.0, 1.0
    for step in range(1, 120):
        rising, constant = rising * min(0.99, (1 + step) / (10 + step)), constant * 0.99
    assert constant > 0.3 and rising < 1e-6


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_decays_that_are_none(decay):
    with pytest.raises(ConfigError, match=r"MovingAveraging\.decay"):
        MovingAveraging(decay)
