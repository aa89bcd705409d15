"""Batch norms of frozen parts keep their statistics in a fit; those of parts that learn follow the batches."""

import pytest
import torch
from helpers.tiny import data, student, teacher, trainer
from lightning.pytorch import Callback
from torch import nn

from kd_convnext.losses import Eq5
from kd_convnext.models.backbones import BackboneSpec
from kd_convnext.modules.optim import OptimSpec

SPEC = BackboneSpec(name="tf_efficientnet_lite0", image_size=32)


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


class Moved(Callback):
    """Keeps, for each epoch, the batch norms whose statistics it has moved."""

    def __init__(self):
        self.epochs = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = means(pl_module.classifier)

    def on_train_epoch_end(self, trainer, pl_module):
        after = means(pl_module.classifier)
        self.epochs.append({name for name, mean in after.items() if not torch.equal(mean, self.before[name])})


def norms(network):
    return {name: one for name, one in network.named_modules() if isinstance(one, nn.BatchNorm2d)}


def means(network):
    return {name: norm.running_mean.clone() for name, norm in norms(network).items()}


def fitted(module, source, folder, epochs=1):
    moved = Moved()
    trainer(folder, epochs=epochs, limit_train_batches=1, callbacks=[moved]).fit(module, datamodule=source)
    return moved.epochs


def test_a_frozen_body_is_as_it_was(source, tmp_path):
    module = teacher(source, backbone=SPEC, finetune="head_only")
    assert fitted(module, source, tmp_path, epochs=2) == [set(), set()]
    assert not module.backbone.network.bn1.training and module.backbone.network.classifier.training


def test_only_the_blocks_that_learn_move(source, tmp_path):
    module = teacher(source, backbone=SPEC, finetune="last_blocks", blocks=1)
    learn = {name for name, norm in norms(module.backbone).items() if norm.weight.requires_grad}
    assert 0 < len(learn) < len(norms(module.backbone))
    assert fitted(module, source, tmp_path) == [learn]


def test_a_body_moves_from_the_epoch_in_which_it_begins_to_learn(source, tmp_path):
    module = teacher(source, backbone=SPEC, finetune="head_first", head_epochs=1)
    assert fitted(module, source, tmp_path, epochs=2) == [set(), set(norms(module.backbone))]


def test_stages_of_a_student_move_from_the_epoch_in_which_they_begin_to_learn(source, tiny_run, tmp_path):
    options = {"objective": Eq5(drop=["feature"]), "optim": OptimSpec(lr=1e-3, unfreeze_epochs=1)}
    module = student(source, tiny_run, student=SPEC, **options)
    # The last stage holds the last block, and what stands between it and the head.
    last = {name for name in norms(module.student) if name.startswith(("network.blocks.6.", "network.bn2"))}
    assert last and fitted(module, source, tmp_path, epochs=2) == [set(), last]
