"""Learning rates step by step, parameter groups, refusals, and the fused optimisers against torch's plain ones."""

import math

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from helpers.tiny import CONVNEXT_SPEC, data, student, teacher, trainer
from timm.optim import param_groups_weight_decay
from torch import nn

from kd_convnext.errors import ConfigError
from kd_convnext.losses import Eq5
from kd_convnext.models.backbones import build_backbone
from kd_convnext.modules.optim import OptimSpec, build_optimizer, build_schedule


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
    module = student(source, objective=Eq5(drop=["feature", "soft"]))
    fit = trainer(tmp_path, precision=precision, gradient_clip_val=clip, limit_train_batches=1, limit_val_batches=0)
    fit.fit(module, datamodule=source)
    assert fit.optimizers[0].param_groups[0]["fused"] is fused


def rates(spec, *, steps, per_epoch, head_epochs=0, count=None):
    """Returns the learning rates of body and head at every optimiser step, without training anything."""
    body, head = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.zeros(2, 2))
    optimizer = build_optimizer(spec, [body], [head], first_epochs={body: head_epochs})
    schedule = build_schedule(spec, optimizer, steps=steps, steps_per_epoch=per_epoch)
    table = []
    for _ in range(steps if count is None else count):
        table.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return np.array(table).T


class TestSchedule:
    def test_constant_never_changes(self):
        body, head = rates(OptimSpec(lr=0.2), steps=5, per_epoch=2)
        assert body.tolist() == head.tolist() == [0.2] * 5

    def test_an_endless_fit_may_be_constant(self):
        body, _ = rates(OptimSpec(lr=0.2), steps=math.inf, per_epoch=2, count=3)
        assert body.tolist() == [0.2] * 3

    def test_cosine_reaches_half_in_the_middle_and_its_floor_at_the_end(self):
        _, head = rates(OptimSpec(lr=2.0, schedule="cosine", final_lr_fraction=0.5), steps=4, per_epoch=2, count=7)
        # 1 + cos(pi * step / 4) over two, between 2 and 1; steps beyond the end stay at the floor.
        expected = [2.0, 1 + (1 + 2**-0.5) / 2, 1.5, 1 + (1 - 2**-0.5) / 2, 1.0, 1.0, 1.0]
        assert head == pytest.approx(expected)

    def test_warm_up_rises_in_equal_parts_and_never_stands_at_zero(self):
        _, head = rates(OptimSpec(lr=1.0, warmup_epochs=1.5), steps=6, per_epoch=2)
        assert head == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 1.0])

    def test_cosine_begins_after_the_warm_up(self):
        _, head = rates(OptimSpec(lr=1.0, schedule="cosine", warmup_epochs=1), steps=6, per_epoch=2)
        expected = [1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * done / 4)) for done in range(4))]
        assert head == pytest.approx(expected)

    def test_the_body_starts_later_with_a_warm_up_of_its_own(self):
        spec = OptimSpec(lr=1.0, warmup_epochs=1, body_lr_fraction=0.1, schedule="cosine")
        body, head = rates(spec, steps=8, per_epoch=2, head_epochs=1)
        # Body: two steps still, two of warm-up, a cosine over the last four.
        cosine = [0.5 * (1 + math.cos(math.pi * done / 4)) for done in range(4)]
        assert body == pytest.approx(0.1 * np.array([0, 0, 1 / 3, 2 / 3, *cosine]))
        assert head == pytest.approx([1 / 3, 2 / 3, *(0.5 * (1 + math.cos(math.pi * done / 6)) for done in range(6))])

    def test_a_cosine_without_an_end_is_refused(self):
        with pytest.raises(ConfigError, match="max_epochs"):
            rates(OptimSpec(schedule="cosine"), steps=math.inf, per_epoch=2, count=1)

    def test_a_fit_steps_it_after_every_optimiser_step(self, source, tmp_path):
        spec = OptimSpec(lr=1e-3, schedule="cosine", warmup_epochs=1, body_lr_fraction=0.5)
        seen = []

        class Rates(pl.Callback):
            def on_before_optimizer_step(self, trainer, module, optimizer):
                seen.append({group["name"]: group["lr"] for group in optimizer.param_groups})

        fit = trainer(tmp_path, epochs=2, limit_train_batches=4, accumulate_grad_batches=2, limit_val_batches=0)
        fit.callbacks.append(Rates())
        fit.fit(teacher(source, finetune="head_first", head_epochs=1, optim=spec), datamodule=source)
        # Two optimiser steps an epoch. The body has its one step of warm-up and more in the second epoch.
        assert [row["head"] for row in seen] == pytest.approx([1e-3 / 3, 2e-3 / 3, 1e-3, 0.5e-3])
        assert [row["body"] for row in seen] == pytest.approx([0, 0, 0.5e-3 / 3, 1e-3 / 3])


class TestGroups:
    @pytest.fixture
    def network(self):
        return build_backbone(CONVNEXT_SPEC, 5)

    @staticmethod
    def groups_of(network, spec):
        optimizer = build_optimizer(spec, network.body_parameters(), network.head_parameters())
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        return optimizer, [{names[id(parameter)] for parameter in group["params"]} for group in optimizer.param_groups]

    def test_every_parameter_is_in_one_group(self, network):
        _, groups = self.groups_of(network, OptimSpec())
        assert sum(map(len, groups)) == len(set.union(*groups)) == len(list(network.parameters()))

    def test_biases_norms_and_scales_are_not_decayed(self, network):
        optimizer, groups = self.groups_of(network, OptimSpec(weight_decay=0.3))
        rows = [(group["name"], group["weight_decay"]) for group in optimizer.param_groups]
        assert rows == [("body", 0.3), ("body", 0.0), ("head", 0.3), ("head", 0.0)]
        for group, members in zip(optimizer.param_groups, groups, strict=True):
            ndims = {network.get_parameter(name).ndim for name in members}
            assert min(ndims) > 1 if group["weight_decay"] else ndims == {1}
        assert "network.head.fc.weight" in groups[2] and "network.head.fc.bias" in groups[3]
        assert any(name.endswith(".gamma") for name in groups[1])

    def test_agrees_with_timm_s_groups(self, network):
        _, groups = self.groups_of(network, OptimSpec(weight_decay=0.3))
        plain, decayed = param_groups_weight_decay(network, 0.3)
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        assert {names[id(parameter)] for parameter in decayed["params"]} == groups[0] | groups[2]
        assert {names[id(parameter)] for parameter in plain["params"]} == groups[1] | groups[3]

    def test_decay_all_decays_all(self, network):
        optimizer, _ = self.groups_of(network, OptimSpec(weight_decay=0.3, decay_all=True))
        assert [(g["name"], g["weight_decay"]) for g in optimizer.param_groups] == [("body", 0.3), ("head", 0.3)]

    def test_the_body_has_its_fraction_of_the_rate(self, network):
        optimizer, _ = self.groups_of(network, OptimSpec(lr=0.4, body_lr_fraction=0.25))
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 0.1, 0.4, 0.4])

    def test_frozen_parameters_are_left_out(self, network):
        for parameter in network.body_parameters():
            parameter.requires_grad_(False)
        optimizer, _ = self.groups_of(network, OptimSpec())
        assert {group["name"] for group in optimizer.param_groups} == {"head"}

    def test_settings_reach_the_optimiser(self, network):
        adamw, _ = self.groups_of(network, OptimSpec(betas=(0.8, 0.9)))
        sgd, _ = self.groups_of(network, OptimSpec(name="sgd", momentum=0.7))
        assert isinstance(adamw, torch.optim.AdamW) and adamw.defaults["betas"] == (0.8, 0.9)
        assert isinstance(sgd, torch.optim.SGD) and sgd.defaults["momentum"] == 0.7

    def test_the_paper_s_settings_are_the_defaults(self):
        spec = OptimSpec()
        assert (spec.name, spec.lr, spec.weight_decay, spec.schedule) == ("adamw", 1e-3, 5e-4, "constant")


@pytest.mark.parametrize(
    "name, bad, edge",
    [
        ("lr", 0.0, 1e-9),
        ("weight_decay", -0.1, 0.0),
        ("warmup_epochs", -1, 0),
        ("final_lr_fraction", 1.1, 1.0),
        ("final_lr_fraction", -0.1, 0.0),
        ("body_lr_fraction", 1.1, 1.0),
        ("body_lr_fraction", -0.1, 0.0),
        ("momentum", 1.0, 0.99),
        ("momentum", -0.1, 0.0),
    ],
)
def test_values_that_cannot_work_are_refused(name, bad, edge):
    OptimSpec(**{name: edge})
    with pytest.raises(ConfigError) as caught:
        OptimSpec(**{name: bad})
    assert [finding.where for finding in caught.value.findings] == [f"optim.{name}"]


def test_all_refusals_come_together():
    with pytest.raises(ConfigError) as caught:
        OptimSpec(lr=-1, weight_decay=-1, momentum=2)
    assert len(caught.value.findings) == 3


@pytest.mark.parametrize(
    ("option", "other"), [("layer_decay", 0.5), ("unfreeze_epochs", 1), ("decay_all", True), ("name", "sgd")]
)
def test_a_resume_with_other_groups_of_parameters_is_refused(source, tmp_path, option, other):
    fit = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    fit.fit(teacher(source), datamodule=source)
    fit.save_checkpoint(tmp_path / "first.ckpt")
    again = teacher(source, optim=OptimSpec(**{"lr": 1e-3, option: other}))
    then = trainer(tmp_path, epochs=2, limit_train_batches=1, limit_val_batches=0)
    with pytest.raises(ConfigError, match=f"--model.optim.{option}"):
        then.fit(again, datamodule=source, ckpt_path=tmp_path / "first.ckpt")
