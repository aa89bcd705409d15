"""The fused optimisers against torch's plain ones."""

import pytest
import torch
from helpers.tiny import CONVNEXT_SPEC, data, student, teacher, trainer

from kd_convnext.models.backbones import build_backbone
from kd_convnext.modules.optim import OptimSpec, build_optimizer


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_fused_equals_plain(name):
    torch.manual_seed(0)
    one, other = (build_backbone(CONVNEXT_SPEC, 5) for _ in range(2))
    other.load_state_dict(one.state_dict())
    spec = OptimSpec(name=name, lr=1e-2, weight_decay=0.1, body_lr_fraction=0.5)
    fused, plain = (
        build_optimizer(spec, network.body_parameters(), network.head_parameters(), fused=choice)
        for network, choice in ((one, True), (other, False))
    )
    assert all(group["fused"] for group in fused.param_groups)
    assert not any(group["fused"] for group in plain.param_groups)
    for _ in range(5):
        for mine, its in zip(one.parameters(), other.parameters(), strict=True):
            mine.grad = torch.randn_like(mine)
            its.grad = mine.grad.clone()
        fused.step()
        plain.step()
    for mine, its in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)


@pytest.fixture(scope="module")
def source(tiny_manifest, tiny_cache):
    return data(tiny_manifest, tiny_cache)


def test_a_plain_optimiser_s_checkpoint_goes_on(source, tmp_path, monkeypatch):
    """As checkpoints of earlier versions have it."""
    monkeypatch.setattr("kd_convnext.modules.optim.FUSED_ON", ())
    first = trainer(tmp_path, limit_train_batches=1)
    first.fit(teacher(source), datamodule=source)
    assert not first.optimizers[0].param_groups[0]["fused"]
    first.save_checkpoint(tmp_path / "plain.ckpt")
    monkeypatch.undo()
    then = trainer(tmp_path, epochs=2, limit_train_batches=1)
    then.fit(teacher(source), datamodule=source, ckpt_path=tmp_path / "plain.ckpt")
    assert then.global_step == 2
    assert torch.isfinite(then.callback_metrics["train/loss"])


@pytest.mark.parametrize(
    "precision, clip, fused", [("32-true", 1.0, True), ("bf16-mixed", 1.0, None), ("bf16-mixed", None, True)]
)
def test_gradients_can_be_clipped_at_any_precision(source, tmp_path, precision, clip, fused):
    module = student(source, feature=False, soft=False)
    fit = trainer(tmp_path, precision=precision, gradient_clip_val=clip, limit_train_batches=1, limit_val_batches=0)
    fit.fit(module, datamodule=source)
    assert fit.optimizers[0].param_groups[0]["fused"] is fused
