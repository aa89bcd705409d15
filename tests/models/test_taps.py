"""Feature taps on all families of layouts."""

import copy
import gc
import pickle
import weakref

import pytest
import timm
import torch
import torchvision
from torch import nn

from kd_convnext.errors import ConfigError
from kd_convnext.losses import Needs
from kd_convnext.models import Backbone, BackboneSpec, FeatureTaps, build_backbone
from kd_convnext.models.probe import Probe

SWIN = "swin_tiny_patch4_window7_224"
TINY_SWIN = {"embed_dim": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 2, 4, 8]}
TINY_CONVNEXT = {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}


def swin() -> Backbone:
    return build_backbone(BackboneSpec(SWIN, image_size=64, args=TINY_SWIN), 3)


def convnext() -> Backbone:
    return build_backbone(BackboneSpec("convnext_tiny", image_size=64, args=TINY_CONVNEXT), 3)


def images(count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def message(error: pytest.ExceptionInfo[Exception]) -> str:
    return str(error.value)


def test_taps_catch_what_the_network_computes():
    backbone = swin().eval()
    with torch.no_grad():
        taps = FeatureTaps(backbone)
        backbone(images())
        expected = backbone.network.forward_intermediates(
            backbone.normalise(images()), intermediates_only=True, output_fmt="NCHW"
        )
    for feature, reference in zip(taps.pop().values(), expected, strict=True):
        torch.testing.assert_close(feature, reference)


def test_the_order_of_names_and_hooks_does_not_matter():
    backbone = convnext().eval()
    names = [stage.name for stage in backbone.stages]
    forward, backward = FeatureTaps(backbone, names), FeatureTaps(backbone, names[::-1])
    backbone(images())
    one, other = forward.pop(), backward.pop()
    assert list(one) == names and list(other) == names[::-1]
    assert forward.channels == backward.channels[::-1]
    assert all(torch.equal(one[name], other[name]) for name in names)


def test_reading_empties_the_taps():
    backbone = convnext()
    taps = FeatureTaps(backbone)
    with pytest.raises(RuntimeError, match=r"no features of stages\.0"):
        taps.pop()
    backbone(images())
    features = taps.pop()
    assert all(feature.requires_grad for feature in features.values())
    remembered = [weakref.ref(feature) for feature in features.values()]
    del features
    gc.collect()
    assert not any(reference() is not None for reference in remembered)
    with pytest.raises(RuntimeError):
        taps.pop()


def test_inactive_taps_record_only_in_run():
    backbone = convnext()
    taps = FeatureTaps(backbone, active=False)
    backbone(images())
    with pytest.raises(RuntimeError, match="active taps"):
        taps.pop()
    logits, maps = taps.run(backbone, images())
    assert logits.shape == (2, 3) and [len(each) for each in maps] == [2] * 4
    backbone(images(4))
    with pytest.raises(RuntimeError, match="active taps"):
        taps.pop()


def test_taps_change_neither_answers_nor_state():
    backbone = convnext().eval()
    before, names = backbone(images()), list(backbone.state_dict())
    FeatureTaps(backbone)
    assert torch.equal(backbone(images()), before)
    assert list(backbone.state_dict()) == names


def test_copies_have_their_own_taps():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = convnext()
            self.taps = FeatureTaps(self.backbone)

    original = Pair()
    original.backbone(images())
    for copied in (copy.deepcopy(original), pickle.loads(pickle.dumps(original.backbone))):
        backbone = copied.backbone if hasattr(copied, "backbone") else copied
        backbone(images(5))
    copied = copy.deepcopy(original)
    with pytest.raises(RuntimeError):
        copied.taps.pop()
    copied.backbone(images(5))
    assert {len(feature) for feature in copied.taps.pop().values()} == {5}
    assert {len(feature) for feature in original.taps.pop().values()} == {2}
    original.backbone(images())
    assert len(original.taps.pop()) == 4


def test_any_module_with_a_map_can_be_tapped():
    backbone = swin()
    backbone.network.layers[0].eval()
    names = ["patch_embed.proj", "layers.1.blocks.0", "layers.3"]
    taps = FeatureTaps(backbone, names)
    assert backbone.training and not backbone.network.layers[0].training
    assert taps.channels == (12, 24, 96)
    backbone(images())
    assert [tuple(f.shape[1:]) for f in taps.pop().values()] == [(12, 16, 16), (24, 8, 8), (96, 2, 2)]


def test_bad_names_are_reported_together_with_the_valid_ones():
    with pytest.raises(ConfigError) as error:
        FeatureTaps(convnext(), ["stage.2", "stages.1", "stages.1", "nothing"])
    text = message(error)
    assert len(error.value.findings) == 3
    assert "no module 'stage.2'" in text and "Did you mean stages.2?" in text
    assert "Valid are stages.0, stages.1, stages.2, stages.3, stem" in text
    assert "'stages.1' is named twice" in text
    with pytest.raises(ConfigError, match="the list of modules is empty"):
        FeatureTaps(convnext(), [])
    with pytest.raises(ConfigError, match=r"'head\.fc' returns shape \[1, 3\], no feature map"):
        FeatureTaps(convnext(), ["head.fc"])


def test_backbones_without_four_stages_need_names():
    mixer = build_backbone(BackboneSpec("mixer_s16_224"), 3)
    with pytest.raises(ConfigError, match="has stages at 1/16 of the image"):
        FeatureTaps(mixer)


@pytest.mark.parametrize("token_blocks", [0, 2])
def test_tokens_of_a_plain_transformer_become_maps(token_blocks):
    spec = BackboneSpec("vit_tiny_patch16_224", image_size=64, args={"depth": 8}, token_blocks=token_blocks)
    vit = build_backbone(spec, 3).eval()
    start = "vit." if token_blocks else ""
    taps = FeatureTaps(vit)
    assert taps.names == tuple(f"{start}blocks.{number}" for number in (1, 3, 5, 7)) and taps.channels == (192,) * 4
    caught = {}
    vit.network.get_submodule(f"{start}blocks.3").register_forward_hook(lambda *call: caught.update(tokens=call[2]))
    images = torch.randn(2, 3, 64, 64)
    _, maps = taps.run(vit, images)
    assert [tuple(each.shape) for each in maps] == [(2, 192, 4, 4)] * 4
    # The class token comes first; the others lie row by row.
    assert torch.equal(maps[1][:, :, 2, 3], caught["tokens"][:, 1 + 2 * 4 + 3])


@pytest.mark.parametrize(
    "spec",
    [
        BackboneSpec("convnext_tiny", image_size=32, args={"depths": [1, 1, 1, 1], "dims": [8, 16, 16, 24]}),
        BackboneSpec("vit_tiny_patch16_224", image_size=32, args={"depth": 1}),
        BackboneSpec("vit_tiny_patch16_224", image_size=32, args={"depth": 2}, token_blocks=2),
        BackboneSpec("efficientnet_lite0", image_size=32),
    ],
    ids=lambda spec: f"{spec.name} {spec.token_blocks}",
)
def test_a_probe_gives_what_the_head_sees(spec):
    backbone = build_backbone(spec, 3).eval()
    probe = Probe(backbone, Needs.EMBEDDING)
    found = probe.run(backbone, torch.rand(2, 3, 32, 32))
    head = backbone.network.get_classifier()
    assert found.maps is None and found.embedding.shape == (2, probe.widths.embedding)
    torch.testing.assert_close(head(found.embedding), found.logits)
    assert probe.widths == (3, (), head.in_features)
    assert Probe(backbone, Needs.LOGITS).run(backbone, torch.rand(1, 3, 32, 32)).embedding is None


@pytest.mark.slow
def test_taps_survive_compilation():
    backbone = swin().eval()
    taps = FeatureTaps(backbone, active=False)
    expected, features = taps.run(backbone, images())
    run = torch.compile(lambda pictures: taps.run(backbone, pictures), backend="aot_eager", fullgraph=True)
    found, compiled = run(images())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for feature, reference in zip(compiled, features, strict=True):
        torch.testing.assert_close(feature, reference, rtol=1e-4, atol=1e-5)
    assert all(feature.requires_grad for feature in compiled)


@pytest.mark.parametrize(
    ("build", "names", "channels"),
    [
        (lambda: torchvision.models.resnet18(), ["layer1", "layer2.0.conv1", "layer4"], (64, 128, 512)),
        (lambda: torchvision.models.swin_t(), ["features.1", "features.7"], (96, 768)),
        (lambda: timm.create_model("resnet18"), None, (64, 128, 256, 512)),
        (lambda: timm.create_model("efficientnet_b0"), ["blocks.2", "conv_head"], (40, 1280)),
        (lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 3)), ["1"], (8,)),
    ],
    ids=["torchvision resnet", "torchvision swin", "timm resnet", "timm efficientnet", "own"],
)
def test_networks_of_others_are_tapped_as_they_are(build, names, channels):
    network = build().eval()
    taps = FeatureTaps(network, names, active=False, image_size=64)
    grey = isinstance(network, nn.Sequential)
    images = torch.rand(2, 1 if grey else 3, 64, 64)
    with torch.no_grad():
        caught = {}
        network.get_submodule(taps.names[-1]).register_forward_hook(lambda *call: caught.update(last=call[2]))
        answers, maps = taps.run(network, images)
        torch.testing.assert_close(answers, network(images))
    assert taps.channels == channels == tuple(each.shape[1] for each in maps)
    expected = caught["last"].movedim(3, 1) if "features.7" in taps.names else caught["last"]
    assert torch.equal(maps[-1], expected)


def test_a_class_token_of_torchvision_is_no_part_of_the_map():
    network = torchvision.models.VisionTransformer(32, 8, 2, 2, 16, 16).eval()
    taps = FeatureTaps(network, ["encoder.layers.encoder_layer_1"], active=False, image_size=32)
    assert [tuple(each.shape) for each in taps.run(network, torch.rand(1, 3, 32, 32))[1]] == [(1, 16, 4, 4)]
    with pytest.raises(ConfigError, match=r"cannot take images of 3 x 64 x 64"):
        FeatureTaps(network, ["encoder.layers.encoder_layer_1"], image_size=64)
    with pytest.raises(ConfigError, match="lists no stages"):
        FeatureTaps(network)


def test_only_square_images_have_a_grid_of_tokens():
    vit = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, dynamic_img_size=True).eval()
    taps = FeatureTaps(vit, ["blocks.1"], active=False, image_size=64)
    assert taps.run(vit, torch.rand(1, 3, 96, 96))[1][0].shape == (1, 192, 6, 6)
    with pytest.raises(ConfigError, match=r"24 tokens of 'blocks\.1' are no square grid"):
        taps.run(vit, torch.rand(1, 3, 64, 96))
    with pytest.raises(ConfigError, match="square images"):
        build_backbone(BackboneSpec("resnet18", image_size=(64, 96)), 3)
