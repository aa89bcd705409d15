"""Layers of backbones from stem to head: learning rates that fall, and blocks that are frozen."""

import pytest
import torch
from helpers.tiny import CONVNEXT_SPEC, SWIN_SPEC, data, student, teacher, trainer

from kd_convnext.errors import ConfigError
from kd_convnext.losses import CrossEntropy, Objective
from kd_convnext.models.backbones import BackboneSpec, build_backbone
from kd_convnext.models.layers import first_epochs, freeze_all_but_last, layer_numbers, layer_scales
from kd_convnext.modules.optim import OptimSpec, build_optimizer

VIT = {"embed_dim": 12, "depth": 3, "num_heads": 2, "patch_size": 16}
VIT_SPEC = BackboneSpec("vit_tiny_patch16_224", image_size=32, args=VIT)
TOKENS_SPEC = BackboneSpec("vit_tiny_patch16_224", image_size=32, args=VIT, token_blocks=2)


@pytest.mark.parametrize(("spec", "last"), [(VIT_SPEC, 4), (TOKENS_SPEC, 4), (CONVNEXT_SPEC, 5), (SWIN_SPEC, 5)])
def test_every_parameter_has_a_layer_and_the_head_the_last(spec, last):
    backbone = build_backbone(spec, 5)
    numbers = layer_numbers(backbone)
    assert set(numbers) == set(backbone.network.parameters()) and sorted(set(numbers.values())) == list(range(last + 1))
    assert {numbers[parameter] for parameter in backbone.head_parameters()} == {last}


def test_learning_rates_fall_from_head_to_stem():
    backbone = build_backbone(VIT_SPEC, 5)
    spec = OptimSpec(lr=1.0, layer_decay=0.5, body_lr_fraction=0.8)
    scales = layer_scales(backbone, 0.5)
    optimizer = build_optimizer(spec, backbone.body_parameters(), backbone.head_parameters(), scales=scales)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    names = {name: rates[id(parameter)] for name, parameter in backbone.network.named_parameters()}
    assert names["head.weight"] == 1.0 and names["patch_embed.proj.weight"] == pytest.approx(0.8 * 0.5**4)
    blocks = [names[f"blocks.{number}.attn.qkv.weight"] for number in range(3)]
    assert blocks == pytest.approx([0.8 * 0.5**3, 0.8 * 0.5**2, 0.8 * 0.5])
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert all((decays[id(p)] == 0) == (p.ndim == 1) for p in backbone.network.parameters())
    assert {group["name"] for group in optimizer.param_groups} == {"body", "head"}


def test_a_fit_uses_them(tiny_manifest, tiny_cache, tmp_path):
    source = data(tiny_manifest, tiny_cache)
    fit = trainer(tmp_path, limit_train_batches=1, limit_val_batches=0)
    fit.fit(teacher(source, optim=OptimSpec(lr=1e-3, layer_decay=0.5)), datamodule=source)
    rates = {round(group["lr"] / 1e-3, 6) for group in fit.optimizers[0].param_groups}
    # The norm before Swin's head stands with the head, and learns as fast.
    assert rates == {1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125}


@pytest.mark.parametrize("spec", [VIT_SPEC, TOKENS_SPEC, CONVNEXT_SPEC, SWIN_SPEC])
def test_only_the_last_blocks_learn(spec):
    backbone = build_backbone(spec, 5)
    freeze_all_but_last(backbone, 1)
    learns = {layer for p, layer in layer_numbers(backbone).items() if p.requires_grad}
    last = max(layer_numbers(backbone).values())
    assert learns == {last - 1, last}
    with pytest.raises(ConfigError, match="are finetune: full"):
        freeze_all_but_last(backbone, last)


def test_a_fit_of_the_last_blocks_leaves_the_others_alone(tiny_manifest, tiny_cache, tmp_path):
    source = data(tiny_manifest, tiny_cache)
    module = teacher(source, finetune="last_blocks", blocks=2)
    before = {name: value.clone() for name, value in module.backbone.network.named_parameters()}
    trainer(tmp_path).fit(module, datamodule=source)
    moved = {name for name, value in module.backbone.network.named_parameters() if not torch.equal(value, before[name])}
    assert any(name.startswith("layers.3") for name in moved) and any(name.startswith("layers.2") for name in moved)
    assert not any(name.startswith(("patch_embed", "layers.0", "layers.1")) for name in moved)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (CONVNEXT_SPEC, {"stages.3": 2, "stages.2": 4, "stages.1": 6, "stages.0": 8, "stem": 10}),
        (VIT_SPEC, {"blocks.2": 2, "blocks.1": 4, "blocks.0": 6, "patch_embed": 8}),
    ],
)
def test_stages_begin_to_learn_from_the_head_to_the_stem(spec, expected):
    backbone = build_backbone(spec, 5)
    names = {parameter: name for name, parameter in backbone.network.named_parameters()}
    planned = {names[parameter]: epoch for parameter, epoch in first_epochs(backbone, 0, 2).items()}
    for start, epoch in expected.items():
        assert {found for name, found in planned.items() if name.startswith(f"{start}.")} == {epoch}
    assert first_epochs(backbone, 0, 0) == {}
    assert min(first_epochs(backbone, 3, 2).values()) == 3


def test_a_fit_unfreezes_stage_by_stage_and_a_resume_goes_on(tiny_manifest, tiny_cache, tmp_path):
    source = data(tiny_manifest, tiny_cache)
    spec = OptimSpec(lr=1e-3, unfreeze_epochs=1, decay_all=True, warmup_epochs=0.5)

    def fitted(epochs, ckpt=None):
        module = student(source, optim=spec, objective=Objective({"labels": CrossEntropy()}))
        before = {name: value.clone() for name, value in module.student.network.named_parameters()}
        torch.manual_seed(2)
        fit = trainer(tmp_path, epochs=epochs, limit_train_batches=2, limit_val_batches=0)
        fit.fit(module, datamodule=source, ckpt_path=ckpt)
        fit.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        after = dict(module.student.network.named_parameters())
        moved = {".".join(name.split(".")[:2]) for name, value in after.items() if not torch.equal(value, before[name])}
        return {name for name in moved if name.startswith("st")}, module.state_dict()

    assert fitted(1)[0] == set()
    assert fitted(2)[0] == {"stages.3"}
    moved, whole = fitted(3)
    assert moved == {"stages.3", "stages.2"}
    _, resumed = fitted(3, tmp_path / "2.ckpt")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
