"""Loader processes: a resumed fit loads what an unbroken one would; one that dies or stops ends the fit in words."""

import os
import signal
import time

import pytest
import torch
from helpers import tiny
from lightning.pytorch import Callback

from kd_convnext.data.loading import watched
from kd_convnext.data.loading.datamodule import SpecimenDataModule
from kd_convnext.errors import TrainingError
from kd_convnext.training.foreign_errors import in_words


class Seen(Callback):
    """Keeps what every step was given: rows and pictures, by epoch."""

    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        image = batch["image"]
        self.batches.append((trainer.current_epoch, batch["index"].tolist(), image.sum(dtype=torch.int64).item()))


def fit(folder, data, epochs, ckpt_path=None):
    seen = Seen()
    module = tiny.teacher(data)
    options = {"callbacks": [seen], "limit_val_batches": 0}
    trainer = tiny.trainer(folder, epochs, **options)
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    trainer.save_checkpoint(folder / "end.ckpt")
    return module.state_dict(), seen.batches


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("workers", [1, 2])
def test_resumed_as_if_unbroken(workers, packed, tiny_manifest, tiny_cache, tmp_path):
    def source(count=workers):
        return tiny.data(tiny_manifest, tiny_cache, num_workers=count, packed=packed)

    whole, seen = fit(tmp_path, source(), 3)
    _, alone = fit(tmp_path, source(0), 3)
    assert seen == alone
    fit(tmp_path, source(), 1)
    resumed, later = fit(tmp_path, source(), 3, ckpt_path=tmp_path / "end.ckpt")
    assert later == [batch for batch in seen if batch[0] > 0]
    for name, value in whole.items():
        assert torch.equal(resumed[name], value), name


class Harm(Callback):
    """Sends a signal to the first loader process before the second step."""

    def __init__(self, number):
        self.number = number

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 1:
            loader = trainer.train_dataloader
            os.kill(loader._iterator._workers[0].pid, self.number)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV, signal.SIGSTOP])
def test_a_lost_process_ends_the_fit_in_words(number, tiny_manifest, tiny_cache, tmp_path, monkeypatch):
    from kd_convnext.data.loading import loader

    monkeypatch.setattr(loader, "PATIENCE", 2)
    data: SpecimenDataModule = tiny.data(tiny_manifest, tiny_cache, num_workers=1, batch_size=2)
    trainer = tiny.trainer(tmp_path, 50, callbacks=[Harm(number)], limit_val_batches=0)
    begun = time.monotonic()
    with pytest.raises(TrainingError, match=r"loader process \d+ .*last\.ckpt"), in_words("fit"):
        trainer.fit(tiny.teacher(data), datamodule=data)
    assert time.monotonic() - begun < 60


def test_a_slow_process_is_waited_for(tiny_manifest, tiny_cache, monkeypatch):
    from kd_convnext.data.loading import loader

    looked = []
    monkeypatch.setattr(loader, "PATIENCE", 0.2)
    monkeypatch.setattr(watched, "_require_running", lambda processes: looked.append(processes))
    data = tiny.data(tiny_manifest, tiny_cache, num_workers=1)
    data.setup("fit")
    real = type(data.train_set).batch
    monkeypatch.setattr(type(data.train_set), "batch", lambda *given: (time.sleep(0.5), real(*given))[1])
    rows = [row for batch in data.train_dataloader() for row in batch["index"].tolist()]
    assert sorted(rows) == sorted(data.train_set.rows.tolist()) and looked
