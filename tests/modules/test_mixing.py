"""Mixup and CutMix: pixels and labels by hand, their ranges, and fits with them."""

import numpy as np
import pytest
import torch
from helpers.tiny import data, student, teacher, trainer
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kd_convnext.errors import ConfigError
from kd_convnext.losses import BalancedSoftmax, Objective, SoftTargets
from kd_convnext.modules.mixing import MixSpec, mixed

IMAGES = torch.arange(4 * 3 * 8 * 8).remainder(251).to(torch.uint8).reshape(4, 3, 8, 8)
LABELS = torch.tensor([0, 2, -1, 1])


def draw(spec, seed=0, images=IMAGES, labels=LABELS):
    return mixed(images, labels, spec, 3, np.random.default_rng(seed))


@given(st.integers(0, 1000), st.sampled_from([MixSpec(mixup=0.4), MixSpec(cutmix=1.0), MixSpec(0.4, 1.0, 0.5)]))
@settings(max_examples=60, deadline=None)
def test_pixels_and_labels_are_mixed_alike(seed, spec):
    labels = torch.tensor([0, 2, 1, 0])
    whole = torch.stack([torch.full((3, 8, 8), 60 * k, dtype=torch.uint8) for k in labels.tolist()])
    images, targets = draw(spec, seed, whole, labels)
    assert images.min() >= 0 and images.max() <= 1
    assert torch.allclose(targets.sum(1), torch.ones(4)) and torch.equal(targets.argmax(1), labels)
    # Each picture has the colour of its class, so that its mean is that of its labels.
    colours = torch.arange(3) * 60 / 255
    assert torch.allclose(images.mean(dim=(1, 2, 3)), targets @ colours, atol=1e-6)


def test_mixup_by_hand():
    images, targets = draw(MixSpec(mixup=0.4))
    share = np.random.default_rng(0)
    share.random()
    share = share.beta(0.4, 0.4)
    share = max(share, 1 - share)
    wide = IMAGES.double() / 255
    # The third picture has no label and is alone, as the second is in the middle of those that have one.
    torch.testing.assert_close(images.double(), share * wide + (1 - share) * wide[[3, 1, 2, 0]], atol=1e-6, rtol=0)
    expected = torch.tensor([[share, 1 - share, 0], [0, 0, 1], [-1, -1, -1], [1 - share, share, 0]])
    torch.testing.assert_close(targets.double(), expected.double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("spec", [MixSpec(mixup=0.4), MixSpec(cutmix=1.0)], ids=["mixup", "cutmix"])
@pytest.mark.parametrize(
    ("labels", "pairs"),
    [
        ([0, 2, 1, 0], [3, 2, 1, 0]),  # first with last
        ([0, 2, -1, -1, -1], [1, 0, 4, 3, 2]),  # a loader's block of labelled pictures, and one without labels
        ([-1, 2, -1, 1], [2, 3, 0, 1]),  # another loader's
        ([-1, -1, -1], [2, 1, 0]),
    ],
)
def test_pictures_with_a_label_are_mixed_with_each_other(spec, labels, pairs):
    number = len(labels)
    colours = torch.arange(number, dtype=torch.float32) / number
    found, targets = draw(spec, images=colours[:, None, None, None].expand(-1, 3, 8, 8), labels=torch.tensor(labels))
    assert [row.min().item() >= 0 for row in targets] == [label >= 0 for label in labels]
    # Each picture has a colour of its own, so that its mean tells its counterpart; all keep the same share.
    own, other, mean = colours, colours[pairs], found.mean(dim=(1, 2, 3))
    mixed_with_another = own != other
    shares = ((mean - other) / (own - other))[mixed_with_another]
    assert 0.5 <= shares[0] < 1
    torch.testing.assert_close(shares, shares[:1].expand_as(shares), atol=1e-5, rtol=0)
    torch.testing.assert_close(mean[~mixed_with_another], own[~mixed_with_another])


def test_a_batch_left_as_it_is_has_the_same_form():
    images, targets = draw(MixSpec(mixup=0.4, probability=1e-12))
    torch.testing.assert_close(images, IMAGES / 255)
    assert targets.tolist() == [[1, 0, 0], [0, 0, 1], [-1, -1, -1], [0, 1, 0]]


def test_all_that_cannot_work_is_named_together():
    with pytest.raises(ConfigError) as caught:
        MixSpec(mixup=-1, cutmix=float("nan"), probability=2)
    assert len(caught.value.findings) == 3


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


@pytest.fixture(scope="module")
def teacher_ckpt(source, tmp_path_factory):
    folder = tmp_path_factory.mktemp("teacher")
    fit = trainer(folder)
    module = teacher(source, mixing={"cutmix": 1.0})
    fit.fit(module, datamodule=source)
    fit.save_checkpoint(folder / "teacher.ckpt")
    assert torch.isfinite(fit.callback_metrics["train/loss"])
    return folder / "teacher.ckpt"


def test_teacher_and_student_see_the_same_mixture(source, teacher_ckpt, tmp_path, monkeypatch):
    objective = Objective({"labels": BalancedSoftmax(), "soft": SoftTargets()})
    module = student(source, teacher_ckpt, objective=objective, mixing=MixSpec(mixup=0.4))
    seen = []
    original = module.distil

    def distil(images, labels, weights, stored=None):
        seen.append((images.dtype, tuple(labels.shape)))
        return original(images, labels, weights, stored)

    monkeypatch.setattr(module, "distil", distil)
    fit = trainer(tmp_path)
    fit.fit(module, datamodule=source)
    assert seen and all(dtype == torch.float32 and shape[1] == 5 for dtype, shape in seen)
    assert torch.isfinite(fit.callback_metrics["train/loss_soft"])


def test_labels_teach_beside_photographs_without_labels(tiny_manifest, tiny_cache, teacher_ckpt, tmp_path):
    (tmp_path / "others").mkdir()
    rng = np.random.default_rng(0)
    for number in range(9):
        Image.fromarray(rng.integers(0, 256, (30, 30, 3), np.uint8)).save(tmp_path / "others" / f"{number}.png")
    unlabelled = data(tiny_manifest, tiny_cache, unlabelled=str(tmp_path / "others"))
    objective = Objective({"labels": BalancedSoftmax(), "soft": SoftTargets()})
    fit = trainer(tmp_path)
    fit.fit(student(unlabelled, teacher_ckpt, objective=objective, mixing=MixSpec(mixup=0.4)), datamodule=unlabelled)
    assert fit.callback_metrics["train/loss_labels"] > 0.5  # of five classes


def test_the_mixture_of_a_resumed_epoch_is_that_of_the_whole_fit(source, tmp_path):
    def fitted(epochs, ckpt=None):
        fit = trainer(tmp_path, epochs=epochs)
        module = teacher(source, mixing=MixSpec(mixup=0.4, cutmix=1.0))
        fit.fit(module, datamodule=source, ckpt_path=ckpt)
        return fit, module.state_dict()

    _, whole = fitted(2)
    fit, _ = fitted(1)
    fit.save_checkpoint(tmp_path / "one.ckpt")
    _, resumed = fitted(2, tmp_path / "one.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_stored_answers_know_no_mixture(source, teacher_ckpt):
    with pytest.raises(ConfigError, match="teacher_cache: false"):
        student(source, teacher_ckpt, teacher_cache="still", mixing=MixSpec(mixup=0.4))
