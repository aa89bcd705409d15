"""Modules with loaders and data modules of others: batches of (image, label), dictionaries, images alone."""

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers import tiny
from torch.utils.data import DataLoader, TensorDataset

from kd_convnext import DistillModule, TeacherModule
from kd_convnext.errors import ConfigError
from kd_convnext.modules.optim import OptimSpec


def images(count=10, size=32, seed=0):
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def loader(*tensors, batch_size=4):
    return DataLoader(TensorDataset(*tensors), batch_size=batch_size)


def student(tiny_run):
    return DistillModule(5, student=tiny.CONVNEXT_SPEC, teacher_ckpt=str(tiny_run), optim=OptimSpec(lr=1e-3))


class Dictionaries(pl.LightningDataModule):
    """Yields dictionaries without numbers, from hooks of its own."""

    def train_dataloader(self):
        return loader(images(), torch.arange(10) % 5)

    val_dataloader = test_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {"image": (batch[0] * 255).byte(), "label": batch[1]}


def test_plain_loaders_of_pairs_teach_judge_and_answer(tiny_run, tmp_path):
    module, labels = student(tiny_run), torch.arange(10) % 5
    trainer = tiny.trainer(tmp_path)
    pairs = loader(images(), labels)
    trainer.fit(module, pairs, pairs)
    assert trainer.callback_metrics["val/f1_macro"] >= 0 and module.staff is None
    trainer.test(module, pairs, verbose=False)
    # The last batch is smaller than the others: each picture still has a number of its own.
    assert module.evaluation.index.tolist() == list(range(10))
    assert module.evaluation.labels.tolist() == labels.tolist()
    answers = torch.cat(trainer.predict(module, DataLoader(images(), batch_size=4)))
    np.testing.assert_allclose(answers.numpy(), module.evaluation.probabilities, atol=1e-6)
    assert module.evaluation.labels.tolist() == [-1] * 10


def test_a_validation_part_without_labels_chooses_no_epoch(tmp_path):
    module, unknown = TeacherModule(5, backbone=tiny.SWIN_SPEC), torch.full((10,), -1)
    with pytest.raises(ConfigError, match=r"none of its photographs has a label.* --trainer.limit_val_batches 0"):
        tiny.trainer(tmp_path).fit(module, loader(images(), torch.arange(10) % 5), loader(images(), unknown))
    # Such answers are judged by nothing, and no loss is made up.
    trainer = tiny.trainer(tmp_path)
    trainer.test(module, loader(images(), unknown), verbose=False)
    assert not trainer.callback_metrics and len(module.evaluation) == 10


def test_a_foreign_data_module_of_dictionaries(tiny_run, tmp_path):
    for module in (student(tiny_run), TeacherModule(5, backbone=tiny.SWIN_SPEC)):
        trainer = tiny.trainer(tmp_path)
        trainer.fit(module, datamodule=Dictionaries())
        trainer.test(module, datamodule=Dictionaries(), verbose=False)
        assert len(module.evaluation) == 10


def test_indices_that_are_given_name_the_pictures(tmp_path):
    module = TeacherModule(5, backbone=tiny.CONVNEXT_SPEC)
    numbered = loader(images(6), torch.zeros(6, dtype=torch.int64), torch.tensor([7, 3, 9, 3, 1, 0]))
    tiny.trainer(tmp_path).test(module, numbered, verbose=False)
    assert module.evaluation.index.tolist() == [0, 1, 3, 7, 9]


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ((images() * 4 - 2, torch.zeros(10, dtype=torch.int64)), "not within 0..1"),
        ((images(size=48), torch.zeros(10, dtype=torch.int64)), "images are 3 x 48 x 48"),
        ((images()[..., :24], torch.zeros(10, dtype=torch.int64)), "images are 3 x 32 x 24"),
        ((images(),), "no image has a label"),
        ((images(), torch.arange(5, 15) % 6), "label 5 for 5 classes. Use whole numbers from 0 to 4"),
        ((images(), torch.zeros(10)), r"labels of 4 images are float32 of shape \[4\]. Use whole numbers"),
        ((images(), torch.eye(10)[:, :5].long()), r"are int64 of shape \[4, 5\]. Use whole numbers"),
        ((images().long(), torch.zeros(10, dtype=torch.int64)), "torch.int64"),
    ],
)
def test_what_a_network_would_misread_is_refused(tmp_path, tensors, says):
    with pytest.raises(ConfigError, match=says):
        tiny.trainer(tmp_path).fit(TeacherModule(5, backbone=tiny.CONVNEXT_SPEC), loader(*tensors))


def test_labels_of_32_bits_teach_and_are_judged(tmp_path):
    module = TeacherModule(5, backbone=tiny.CONVNEXT_SPEC, loss="cross_entropy")
    labels = (torch.arange(10) % 5 - 1).int()
    data = [{"image": images()[n], "label": label, "index": n} for n, label in enumerate(labels)]
    batches = DataLoader(data, batch_size=4)
    tiny.trainer(tmp_path).fit(module, batches, batches)
    assert module.evaluation.labels.tolist() == labels.tolist()


@pytest.mark.parametrize("batch", [{"picture": images()}, {"image": images(), "label": [1, 2]}, "text", ("a", "b")])
def test_other_batches_are_named(batch):
    from kd_convnext.modules.batches import understood

    with pytest.raises(ConfigError, match="Yield"):
        understood(batch)
